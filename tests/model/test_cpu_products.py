"""Linear layers through oneDNN: the same numbers to fp32's rounding, only where they belong, never in training."""

import pytest
import torch
from torch.nn import functional as F

from alip.distributed import World
from alip.eval.features import Encoding
from alip.model import cpu_products, create_model
from tests.helpers.steps import TINY_MODEL

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As on an AMD processor with AVX-512; the products are the same on others."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN linear layer")
    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: True)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the inputs that went through oneDNN."""
    found, real = [], cpu_products._linear

    def counted(input, weight, bias=None):
        found.append(tuple(input.shape))
        return real(input, weight, bias)

    monkeypatch.setattr(cpu_products, "_linear", counted)
    return found


def test_products_against_float64(calls):
    generator = torch.Generator().manual_seed(0)
    for shape, out, with_bias in (((3, 7), 5, True), ((2, 3, 300), 64, False), ((40, 64), 1, True), ((1, 1), 1, True)):
        x, weight = (torch.randn(*size, generator=generator) for size in (shape, (out, shape[-1])))
        bias = torch.randn(out, generator=generator) if with_bias else None
        wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)[..., ::2]
        for one in (x, wide):  # the second is not contiguous
            with torch.no_grad(), cpu_products.onednn_linears(CPU):
                found = F.linear(one, weight, bias)
            exact = F.linear(one.double(), weight.double(), None if bias is None else bias.double())
            assert found.shape == exact.shape and found.dtype == torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert len(calls) == 8


def test_what_does_not_belong_goes_the_usual_way(calls):
    x, layer = torch.randn(4, 8), torch.nn.Linear(8, 3)
    with cpu_products.onednn_linears(CPU):
        assert layer(x).requires_grad  # gradients
        with torch.no_grad():
            layer.double()(x.double())
            layer.float()
            F.linear(x[0], layer.weight, layer.bias)
            F.linear(x[:0], layer.weight, layer.bias)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            with torch.backends.mkldnn.flags(enabled=False):
                layer(x)
    with torch.no_grad():
        layer(x)  # the context has ended
    assert not calls


def test_features_of_a_model(calls):
    torch.manual_seed(0)
    model = create_model({"model_cfg": TINY_MODEL}).eval()
    images = torch.randn(3, 3, 32, 32)
    texts = model.tokenizer(["a red dog", "a longer text about two green birds"])
    with torch.no_grad():
        expected = [model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)]
    with Encoding(World(), precision="fp32").computing():
        found = [model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)]
    assert len(calls) > 8
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
