"""What reaches the device, and how: texts with their plan, pixels as bytes, nothing that the host waits for."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from alip.data import loader as loaders
from alip.data.batch import prepare_texts
from alip.data.decoders import DaliDecoder, PixelFormat
from alip.data.loader import Augmentation, create_loader
from alip.distributed import World
from alip.model import create_model
from tests.helpers.steps import TINY_MODEL

COLOURS = Augmentation(rotation=20, brightness=0.3, contrast=0.3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model(TINY_MODEL).eval()


def first_batch(shards, model, **options):
    return next(iter(create_loader(shards, 16, **model.input_format, world=World(), **options).epoch(0)))


@pytest.mark.parametrize("reader", ["dali", "torch"])
def test_a_batch_brings_the_plan_of_its_texts_and_nothing_changes(shards, model, reader):
    batch = first_batch(shards, model, reader=reader)
    made_here = model.plan_texts(torch.cat([batch.text_tokens, batch.caption_tokens]))
    assert batch.text_plan.groups == made_here.groups and torch.equal(batch.text_plan.buffer, made_here.buffer)
    without = model(batch.image, batch.text_tokens, batch.caption_tokens)
    assert all(torch.equal(a, b) for a, b in zip(model(*batch.inputs), without))


def test_a_model_that_pads_gets_no_plan(shards):
    padded = create_model(TINY_MODEL, pad_texts=True)
    batch = first_batch(shards, padded, reader="torch")
    assert batch.text_plan is None and len(batch.inputs) == 3


@pytest.mark.parametrize("augmentation", [Augmentation(), COLOURS], ids=["crop", "colours"])
@pytest.mark.parametrize("reader", ["dali", "torch"])
def test_bytes_normalised_by_the_model_are_the_loaders_floats(shards, model, monkeypatch, reader, augmentation):
    """As for a GPU: uint8 up to the model. The only difference is the rounding of two fp32 operations."""
    floats = first_batch(shards, model, reader=reader, augmentation=augmentation)
    monkeypatch.setattr(loaders, "PixelFormat", lambda *form: PixelFormat(*form[:-1], True))
    raw = first_batch(shards, model, reader=reader, augmentation=augmentation)
    assert raw.image.dtype == torch.uint8 and raw.image.shape == floats.image.shape
    normalised = (raw.image.float() - model.pixel_mean) / model.pixel_std
    torch.testing.assert_close(normalised, floats.image, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(model.encode_image(raw.image), model.encode_image(floats.image), rtol=1e-4, atol=1e-5)
    assert not any("pixel" in name for name in model.state_dict())


def test_texts_for_a_gpu_are_page_locked_in_two_pieces(model, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.dtype) or self)
    tokens = torch.zeros(4, 77, dtype=torch.int64)
    tokens[:, 5] = 49407
    texts = prepare_texts(tokens, model.plan_texts, torch.device("cuda"))
    assert pinned == [torch.int64, torch.int64]  # the tokens, and all of the plan
    raw, _, plan = texts.send(torch.device("meta"))
    assert raw.shape == (2, 77) and plan.groups == texts.plan.groups
    tensors = [value for value in vars(plan).values() if isinstance(value, torch.Tensor)]
    assert tensors and all(tensor.device.type == "meta" for tensor in tensors)
    assert plan.cumulative.dtype == torch.int32 and plan.cumulative.shape == (5,)


def test_dali_hands_over_on_the_stream_that_trains(monkeypatch):
    """With a stand-in for the pipeline and for CUDA: outputs are bound to torch's stream, and not copied."""
    decoder = DaliDecoder(PixelFormat(2, (0, 0, 0), (1, 1, 1), raw=True), None, 1, 1, "cuda:0")
    memory, asked = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2), []
    listed = SimpleNamespace(as_tensor=lambda: memory)
    decoder._pipe = SimpleNamespace(outputs=lambda cuda_stream=None: asked.append(cuda_stream) or (listed,))
    decoder._waiting.append(([], None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert decoder.result().data_ptr() == memory.data_ptr()
    assert asked == ["stream of cuda:0"]
