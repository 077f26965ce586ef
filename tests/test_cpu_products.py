"""Products through oneDNN: the same numbers and gradients to fp32's rounding, only where they belong."""

import pytest
import torch
from torch.nn import functional as F

from alip import cpu_products
from alip.distributed import World
from alip.eval.features import Encoding
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from tests.helpers.steps import TINY_MODEL, make_batch, make_step

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As on an AMD processor with AVX-512; the products are the same on others."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN linear layer")
    monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_products, "SMALLEST", 1)


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


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_against_float64(calls, with_bias):
    generator = torch.Generator().manual_seed(1)
    for shape, out in (((3, 7), 5), ((2, 3, 300), 64), ((40, 64), 1), ((1, 1), 1)):
        x, weight = (torch.randn(*size, generator=generator) for size in (shape, (out, shape[-1])))
        bias = torch.randn(out, generator=generator) if with_bias else None
        upstream = torch.randn(*shape[:-1], out, generator=generator).transpose(0, -2)  # not contiguous, as often
        results = []
        for dtype in (torch.float32, torch.float64):
            leaves = [one.detach().to(dtype).requires_grad_() for one in (x, weight, bias) if one is not None]

            with cpu_products.onednn_linears(CPU):
                y = F.linear(leaves[0].transpose(0, -2), *leaves[1:])
                y.backward(upstream.to(dtype).reshape(y.shape))
            results.append([y, *(leaf.grad for leaf in leaves)])
        for found, exact in zip(*results):
            assert found.dtype == torch.float32 and found.shape == exact.shape
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert len(calls) == 4


def test_only_gradients_that_are_needed(calls):
    x, weight = torch.randn(6, 8), torch.randn(3, 8, requires_grad=True)
    with cpu_products.onednn_linears(CPU):
        (gradient,) = torch.autograd.grad(F.linear(x, weight).square().sum(), weight)
    torch.testing.assert_close(gradient, 2 * (x @ weight.detach().T).T @ x, rtol=1e-5, atol=1e-5)
    with cpu_products.onednn_linears(CPU):
        assert not F.linear(x, weight.detach()).requires_grad
    assert len(calls) == 2


def test_products_of_the_loss():
    generator = torch.Generator().manual_seed(2)
    for n, k, m in ((5, 3, 4), (1, 8, 1), (64, 32, 48), (128, 128, 128)):
        a, b = torch.randn(n, k, generator=generator), torch.randn(k, m, generator=generator)
        for one, other in ((a, b), (a.T.contiguous().T, b), (a, b.T.contiguous().T)):
            exact = one.double() @ other.double()
            out = torch.full((n, m), torch.nan)
            cpu_products.multiply(one, other, out)
            total = torch.ones(n, m)
            cpu_products.multiply_add(one, other, total, torch.empty(k, n))
            torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(total.double(), exact + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
def test_the_loss_is_the_same(monkeypatch, cache_bytes):
    results = []
    for faster in (True, False):
        monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda faster=faster: faster)
        generator = torch.Generator().manual_seed(3)
        leaves = [F.normalize(torch.randn(130, 24, generator=generator), dim=1).requires_grad_() for _ in range(3)]
        loss = AdaptiveContrastiveLoss(chunk_size=50, logits_cache_bytes=cache_bytes)(*leaves, torch.tensor(50.0)).loss
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_a_training_step_uses_it(calls, monkeypatch):
    results = []
    for faster in (True, False):
        monkeypatch.setattr(cpu_products, "onednn_is_faster", lambda faster=faster: faster)
        torch.manual_seed(0)
        model = create_model({"model_cfg": TINY_MODEL})
        result = make_step(model)([make_batch(4)], lr=1e-3)
        results.append([result.outcome.loss.detach(), result.grad_norm, *(p.grad for p in model.parameters())])
    assert len(calls) > 8
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", ["checkpointing", "compiled", "compiled image tower"])
def test_not_where_layers_are_repeated_or_compiled(calls, change):
    model = create_model({"model_cfg": TINY_MODEL})
    if change == "checkpointing":
        model.set_grad_checkpointing(True)
        make_step(model)([make_batch(4)], lr=1e-3)
    elif change == "compiled":
        model.compile_towers()
    else:
        model.visual.compile()
    assert not make_step(model).plain_layers and not calls


def test_what_does_not_belong_goes_the_usual_way(calls, monkeypatch):
    x, layer = torch.randn(4, 8), torch.nn.Linear(8, 3)
    with cpu_products.onednn_linears(CPU):
        layer.double()(x.double())
        layer.float()
        F.linear(x[0], layer.weight, layer.bias)
        F.linear(x[:0], layer.weight, layer.bias)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            layer(x)
        monkeypatch.setattr(cpu_products, "SMALLEST", 4 * 8 * 3 + 1)
        layer(x)
        monkeypatch.setattr(cpu_products, "SMALLEST", 1)
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
