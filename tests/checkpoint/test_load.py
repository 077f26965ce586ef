"""What `--checkpoint` takes, what it refuses and how, and that a checkpoint is whole or absent."""

import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from alip import checkpoint
from alip.checkpoint.load import run_folder_of
from alip.errors import UserError
from alip.model import create_model
from tests.helpers.others_models import same

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model(CONFIG).eval()


def content(model, step=3, **more):
    state = model.state_dict()
    ema = {name: value * 2 for name, value in state.items()}
    head = {"format": "alip-checkpoint", "version": 1, "model": state, "ema": ema, "model_config": model.config}
    return head | {"step": step, "samples": 10 * step, "rng": torch.get_rng_state(), "best": None} | more


@pytest.fixture
def run(model, tmp_path):
    folder = tmp_path / "RUN"
    checkpoint.atomic_save(content(model), folder / "checkpoints" / "step-00000003.pt")
    return folder


def test_run_folder_and_file(model, run):
    for path in (run, run / "checkpoints", run / "checkpoints" / "step-00000003.pt", str(run)):
        loaded = checkpoint.load_model(path)
        same(loaded, model)
        assert not loaded.training and loaded.metadata["step"] == 3 and loaded.metadata["samples"] == 30


class Called(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.add(function)
        return function(*args, **(kwargs or {}))


def test_loading_samples_no_weights_that_are_replaced(model, run):
    sampling = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.nn.init.kaiming_uniform_}
    with Called() as fresh:
        create_model(CONFIG)
    with Called() as loading:
        same(checkpoint.load_model(run), model)
    assert sampling & fresh.functions and not sampling & loading.functions


def test_large_weights_are_finite_though_their_sum_is_not(model, tmp_path):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["text_projection"].fill_(3e38)
    checkpoint.atomic_save(content(model) | {"model": state}, tmp_path / "step-00000003.pt")
    assert float(checkpoint.load_model(tmp_path / "step-00000003.pt").text_projection.min()) == pytest.approx(3e38)


def test_ema_weights(model, run):
    loaded = checkpoint.load_model(run, weights="ema")
    torch.testing.assert_close(loaded.text_projection, model.text_projection * 2)
    checkpoint.atomic_save(content(model, step=4, ema=None), run / "checkpoints" / "step-00000004.pt")
    with pytest.raises(UserError, match="no EMA weights"):
        checkpoint.load_model(run, weights="ema")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["bare.pt", "nested.pth", "old.pt", "bare.safetensors"])
def test_released_weights(model, tmp_path, prefix, dtype, form):
    state = {prefix + name: value.to(dtype) for name, value in model.state_dict().items()}
    path = tmp_path / form
    if form.startswith("nested"):
        torch.save({"epoch": 32, "state_dict": state}, path)
    elif form.startswith("old"):
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
    fresh = create_model(CONFIG)
    metadata = checkpoint.load_weights(fresh, path)
    assert metadata["source"] == str(path) and len(metadata["fingerprint"]) == 12
    for name, value in fresh.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].to(dtype).float())


def test_bare_weights_find_their_model_by_their_shapes(tmp_path):
    config = create_model("ViT-S-32-alt").config
    torch.save(create_model(config).state_dict(), tmp_path / "bare.pt")
    assert checkpoint.load_model(tmp_path / "bare.pt").config["model_cfg"] == config["model_cfg"]


def test_pretrained_starts_from_any_of_them(model, run):
    same(create_model(CONFIG, pretrained=run / "checkpoints" / "step-00000003.pt"), model)
    same(create_model(CONFIG, pretrained=str(run)), model)


def test_wrong_architecture_names_tensor_and_likely_model(tmp_path):
    torch.save(create_model("ViT-S-32-alt").state_dict(), tmp_path / "bare.pt")
    with pytest.raises(
        UserError, match=r"tensor positional_embedding is \(77, 256\).*look like ViT-S-32-alt"
    ) as caught:
        checkpoint.load_weights(create_model(CONFIG), tmp_path / "bare.pt")
    assert "\n" not in str(caught.value)


def test_unknown_bare_weights_ask_for_the_model(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(UserError, match="--model"):
        checkpoint.load_model(tmp_path / "bare.pt")
    same(checkpoint.load_model(tmp_path / "bare.pt", CONFIG), model)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_missing_and_extra_tensors(model, tmp_path, change):
    state = dict(model.state_dict())
    if change == "missing":
        del state["ln_final.bias"]
    else:
        state["head.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "bare.pt")
    with pytest.raises(
        UserError, match="ln_final.bias of the model" if change == "missing" else "head.weight of the file"
    ):
        checkpoint.load_weights(create_model(CONFIG), tmp_path / "bare.pt")


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "old.pt"])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_reported(model, tmp_path, name, fraction):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=name != "old.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(UserError, match=r"truncated|empty|damaged"):
        checkpoint.load_weights(create_model(CONFIG), path)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    if form == "zip":
        torch.save({"model": Bomb()}, "bomb.pt")
    else:
        (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"bomb\.pt"):
        checkpoint.read_weights("bomb.pt")
    assert not (tmp_path / "exploded").exists()


BAD = {
    "nan": (lambda value: torch.full_like(value, torch.nan), "values that are NaN or infinite"),
    "infinite": (lambda value: value / 0, "values that are NaN or infinite"),
    "sparse": (lambda value: value.to_sparse(), "is not dense"),
    "meta": (lambda value: value.to("meta"), "holds no numbers"),
    "expanded": (lambda value: torch.zeros(1).expand(10**6, 10**6), "repeats its numbers"),
    "quantized": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "qint8, not float"),
    "complex": (lambda value: value.to(torch.complex64), "complex64, not float"),
    "integers": (lambda value: value.to(torch.int64), "torch.int64 in the file but torch.float32 in the model"),
    "a list": (lambda value: value.tolist(), "holds no state dict"),
    "none": (lambda value: None, "holds no state dict"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", BAD)
@pytest.mark.parametrize("form", ["bare", "checkpoint", "ema"])
def test_tensors_that_are_no_weights_are_reported_by_name(model, tmp_path, change, form):
    make, message = BAD[change]
    name = "ln_final.weight"
    state = dict(model.state_dict())
    state[name] = make(state[name])
    files = {"bare": state, "checkpoint": content(model) | {"model": state}, "ema": content(model) | {"ema": state}}
    torch.save(files[form], tmp_path / "bad.pt")
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load_model(tmp_path / "bad.pt", CONFIG, weights="ema" if form == "ema" else "model")
    assert str(caught.value).startswith(str(tmp_path / "bad.pt")) and len(str(caught.value)) < 400
    assert name in str(caught.value) or "holds no state dict" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model: must be object, not null None"),
        ({"model": []}, r"model: must be object, not array \[\]"),
        ({"ema": [1]}, "ema: must be object or null"),
        ({"model_config": {"embed_dim": 3}}, "vision_cfg, text_cfg missing"),
        ({"model_config": 3}, "model_config: must be object or null"),
        ({"step": -1}, "step: must be at least 0"),
        ({"samples": "many"}, "samples: must be integer"),
        ({"version": None}, "version: must be integer"),
    ],
)
def test_checkpoint_with_a_malformed_part(model, tmp_path, change, message):
    torch.save(content(model) | change, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=message):
        checkpoint.load_model(tmp_path / "bad.pt")


def test_compressed_archive_is_not_unpacked(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(UserError, match="a compressed zip archive"):
        checkpoint.read_weights(tmp_path / "b.pt")


@pytest.mark.parametrize("what", [[1, 2], {"a": 1}, {}, torch.zeros(3)])
def test_file_without_a_state_dict(tmp_path, what):
    torch.save(what, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        checkpoint.read_weights(tmp_path / "odd.pt")


def test_other_files_and_folders(tmp_path, model):
    (tmp_path / "text.pt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    for name in ("text.pt", "zip.pt", "absent.pt", "."):
        with pytest.raises(UserError):
            checkpoint.read_weights(tmp_path / name)
    torch.save(content(model, version=2), tmp_path / "later.pt")
    with pytest.raises(UserError, match="version 2"):
        checkpoint.read_weights(tmp_path / "later.pt")


def test_newest_readable_checkpoint_is_found(model, run):
    folder = run / "checkpoints"
    checkpoint.atomic_save(content(model, step=20), folder / "step-00000020.pt")
    (folder / "step-00000100.pt").write_bytes((folder / "step-00000020.pt").read_bytes()[:5000])
    (folder / ".step-00000200.pt.1.tmp").write_bytes(b"half")
    assert checkpoint.find_checkpoint(run).name == "step-00000020.pt"
    assert checkpoint.fingerprint(run) == checkpoint.fingerprint(folder / "step-00000020.pt")
    for path in folder.glob("step-*"):
        path.write_bytes(b"PK")
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        checkpoint.find_checkpoint(run)


def test_empty_and_absent_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=path.name):
            checkpoint.find_checkpoint(path)


def test_interrupted_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "step-00000001.pt"
    checkpoint.atomic_save({"step": 1}, path)

    def stop(obj, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.atomic_save({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\); make room"):
        checkpoint.atomic_save({"step": 1}, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "RUN").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        checkpoint.atomic_save({}, tmp_path / "RUN" / "a.pt")


def test_command_line_mistake_is_one_line_and_status_2():
    words = ["export", "--checkpoint", "absent", "--to", "hf", "--output", "x"]
    done = subprocess.run(
        [sys.executable, "-m", "alip.checkpoint", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: absent: no such file; give a run folder, a checkpoint file or released weights\n"


def test_the_run_of_a_file_is_that_of_its_checkpoints(tmp_path):
    """What else lies in a run folder, such as weights to start from, was not trained by it."""
    (tmp_path / "run.json").write_text("{}")
    assert run_folder_of(tmp_path) == run_folder_of(tmp_path / "checkpoints/best.pt") == tmp_path
    assert run_folder_of(tmp_path / "start/weights.pt") is None


def test_a_description_is_no_weights_file(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="a description, not weights; give its folder"):
        checkpoint.load_model(tmp_path / "open_clip_config.json")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_here_is_one_line(run):
    with pytest.raises(UserError, match="no GPU can be used here"):
        checkpoint.load_model(run, device="cuda")
