"""Image features by pieces: those of one process, whoever does them, and whoever dies on the way."""

import pytest
import torch

from alip.checkpoint import atomic_save
from alip.eval import features
from alip.eval.feature_cluster import FeatureCluster, ModelSource
from alip.eval.feature_store import encode_stored
from alip.eval.features import Encoding, encode_images
from alip.eval.image_readers import ImageFiles
from alip.model import create_model
from tests.eval.conftest import TINY
from tests.helpers.engines import InTurn
from tests.helpers.pairs import write_pairs


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def content(tmp_path):
    """A model, its checkpoint, and 23 images of which one is broken."""
    torch.manual_seed(0)
    model = create_model({"model_cfg": TINY}).eval()
    content = {"format": "alip-checkpoint", "version": 1, "model": model.state_dict(), "model_config": model.config}
    atomic_save(content | {"ema": None, "step": 1, "samples": 9}, tmp_path / "model.pt")
    write_pairs(tmp_path)
    paths = sorted(tmp_path.rglob("*.png")) or sorted(tmp_path.rglob("*.jpg"))
    paths[5].write_bytes(b"no image")
    return model, ImageFiles(paths, range(len(paths)))


def encoding(tmp_path, engine):
    cluster = engine and FeatureCluster(engine, ModelSource(str(tmp_path / "model.pt")), "cpu")
    return Encoding(batch_size=4, workers=0, progress=False, cache=tmp_path / "cache", cluster=cluster)


def test_the_features_of_one_process(content, tmp_path, monkeypatch, one_thread):
    model, images = content
    monkeypatch.setattr(features, "PART_IMAGES", 5)
    one = encode_images(model, images, encoding(tmp_path, None))
    with pytest.raises(KeyboardInterrupt):
        encode_images(model, images, encoding(tmp_path, InTurn(lambda name, piece: "00001" in piece[0])))
    parts = sorted((tmp_path / "cache").glob("*.safetensors"))
    parts[-1].write_bytes(parts[-1].read_bytes()[:-8])
    other = encode_images(model, images, encoding(tmp_path, engine := InTurn()))
    assert len(engine.calls) == 3, "two were not done, one is damaged"
    assert torch.equal(other.features, one.features) and torch.equal(other.positions, one.positions)
    assert torch.equal(other.labels, one.labels) and other.unreadable == one.unreadable and len(one.unreadable) == 1
    assert not list((tmp_path / "cache").iterdir()), "no parts are left, and nothing is kept while images are missing"
    images.paths[5].write_bytes(images.paths[6].read_bytes())
    whole = encode_images(model, images, encoding(tmp_path, InTurn()))
    again = encode_images(model, images, encoding(tmp_path, engine := InTurn()))
    assert torch.equal(again.features, whole.features) and not engine.calls, "from the cache"


def test_stored_features_are_files_of_the_cluster(content, tmp_path, one_thread):
    model, images = content
    folder = tmp_path / "store"
    one = encode_stored(model, images, encoding(tmp_path, None), "train", folder / "a", file_images=8)
    other = encode_stored(model, images, encoding(tmp_path, engine := InTurn()), "train", folder / "b", file_images=8)
    assert len(engine.calls) == 3 and other.unreadable == one.unreadable and torch.equal(other.labels, one.labels)
    for (a, _), (b, _) in zip(one.blocks(), other.blocks(), strict=True):
        assert torch.equal(a, b)
    encode_stored(model, images, encoding(tmp_path, engine := InTurn()), "train", folder / "a", file_images=8)
    assert not engine.calls, "what one process has written is taken"
