"""The loss in one process: against the reference on random and extreme inputs; its memory, products, care, errors."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alip.infonce import Collectives, bi_path_contrast
from alip.loss import AdaptiveContrastiveLoss, gate_weights
from tests.helpers.loss_reference import (
    NAMES,
    SIMILARITIES,
    WEIGHTS,
    Watch,
    check_against,
    make_features,
    reference_step,
)

ALL = slice(None)
SHAPES = [(1, 8, 4, 0), (37, 16, 8, 300), (96, 24, 32, 0), (130, 32, None, 1 << 20)]  # N, D, block, kept bytes
CASES = ("random", "noisy", "identical", "opposite", "duplicates", "mixed")


def step(loss_fn: AdaptiveContrastiveLoss, features: list, scale: float) -> SimpleNamespace:
    """Forward and backward on fresh leaves; the output's fields, the history and the gradients."""
    leaves = [f.detach().clone().requires_grad_() for f in features]
    logit_scale = torch.tensor(float(scale), requires_grad=True)
    output = loss_fn(*leaves, logit_scale)
    output.loss.backward()
    gradients = dict(zip(NAMES, [leaf.grad for leaf in (*leaves, logit_scale)]))
    return SimpleNamespace(**vars(output), history=loss_fn.history.clone(), gradients=gradients)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(case, scale, shape):
    n, dim, block, keep = shape
    for seed, dtype in enumerate((torch.float32, torch.bfloat16)):
        features = make_features(n, dim, seed, case, dtype)
        loss_fn = AdaptiveContrastiveLoss(chunk_size=block, logits_cache_bytes=keep)
        expected = reference_step(*features, scale, [1.0] * 3)
        check_against(expected, step(loss_fn, features, scale), ALL, f"{case} {scale} {n} {dtype}")


@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_equals_reference_on_a_large_batch(scale):
    features = make_features(1900, 48, 3, "noisy")
    loss_fn = AdaptiveContrastiveLoss(chunk_size=500, logits_cache_bytes=6 << 20)
    check_against(reference_step(*features, scale, [1.0] * 3), step(loss_fn, features, scale), ALL, "large")


def test_random_settings():
    """Random values for every setting; the block size must not matter, whether or not it divides N."""
    g = torch.Generator().manual_seed(0)

    def draw(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=g))]

    for trial in range(40):
        n, dim, scale = draw(2, 3, 17, 64, 111), draw(2, 5, 32), draw(1.0, 3.7, 30.0, 77.7, 100.0)
        features = make_features(n, dim, trial, draw(*CASES))
        use = (draw(True, False), draw(True, False), draw(True, False))
        gammas = {"gamma_sample": draw(0.5, 2.0, 5.0), "gamma_pair": draw(0.5, 2.0, 5.0)}
        knobs = {**gammas, "history_momentum": draw(0.0, 0.5, 0.99)}
        start = draw(None, 1.0, 0.2)
        loss_fn = AdaptiveContrastiveLoss(
            **knobs,
            history_init=start,
            use_sample_weight=use[0],
            use_text_weight=use[1],
            use_caption_weight=use[2],
            chunk_size=draw(1, 7, 16, 64, 1000, None) if n < 64 else draw(16, 37, 64, 1000, None),
            logits_cache_bytes=draw(0, 2000, 1 << 20),
        )
        expected = reference_step(*features, scale, start and [start] * 3, **knobs, use=use)
        check_against(expected, step(loss_fn, features, scale), ALL, f"trial {trial}: {loss_fn}")


@pytest.mark.parametrize("start", [1.0, None, 0.3])
def test_history_over_several_steps(start):
    loss_fn = AdaptiveContrastiveLoss(history_init=start, history_momentum=0.9)
    history = None if start is None else [start] * 3
    for k in range(6):
        features = make_features(20 + 7 * k, 16, k)
        expected = reference_step(*features, 30.0, history, history_momentum=0.9)
        check_against(expected, step(loss_fn, features, 30.0), ALL, f"step {k}")
        history = expected.history.tolist()


def test_history_is_saved_and_rests_in_eval_mode():
    features = make_features(30, 8, 0)
    first = AdaptiveContrastiveLoss(history_init=None)
    assert first.history.isnan().all()
    step(first, features, 10.0)
    second = AdaptiveContrastiveLoss(history_init=1.0)
    assert list(first.state_dict()) == ["history"]
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.history, second.history)
    assert first.history.dtype == torch.float32 and first.history.shape == (3,)

    more = make_features(30, 8, 1)
    a, b = step(first, more, 10.0), step(second, more, 10.0)
    assert torch.equal(a.loss, b.loss) and torch.equal(a.history, b.history)

    second.eval()
    quiet = step(second, features, 10.0)
    assert torch.equal(quiet.history, b.history)
    new = AdaptiveContrastiveLoss(history_init=None).eval()
    assert step(new, features, 10.0).loss.isfinite() and new.history.isnan().all()


def test_all_weights_off_is_the_plain_bi_path_loss():
    x, t, c = make_features(50, 16, 0)
    loss_fn = AdaptiveContrastiveLoss(use_sample_weight=False, use_text_weight=False, use_caption_weight=False)
    output = loss_fn(x, t, c, torch.tensor(25.0))
    labels = torch.arange(50)
    plain = sum((F.cross_entropy(25 * x @ y.T, labels) + F.cross_entropy(25 * y @ x.T, labels)) / 2 for y in (t, c))
    assert torch.allclose(output.loss, plain, rtol=1e-5)
    assert all((getattr(output, name) == 1).all() for name in WEIGHTS)


def test_gates_at_their_edges():
    history = torch.tensor([0.5, 0.4, 0.3])
    S_tc, S_xt, S_xc = torch.tensor([0.6, 0.5, 0.2]), torch.tensor([0.1, 0.1, 0.9]), torch.tensor([0.1, 0.1, -0.7])
    W_s, W_t, W_c = gate_weights(S_tc, S_xt, S_xc, history, 2.0, 2.0)
    assert torch.allclose(W_s, torch.tensor([1.0, 1.0, math.exp(-0.6)]))
    assert torch.allclose(W_t, torch.tensor([1.0, 1.0, math.exp(1.0)]))  # above 1: not capped
    assert torch.allclose(W_c, torch.tensor([1.0, 1.0, math.exp(-2.0)]))
    off, W_t, _ = gate_weights(S_tc, S_xt, S_xc, history, 2.0, 2.0, use_sample_weight=False)
    assert (off == 1).all() and W_t[2] > 1  # the gate still opens by S_tc


@pytest.mark.parametrize(("block", "keep"), [(2, 0), (3, 100), (None, 1 << 20)])
def test_gradcheck(block, keep):
    """Numerical differentiation, in float64, with the weights held (they are constants for the gradient)."""
    leaves = [f.double().requires_grad_() for f in make_features(5, 3, 0)]
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1

    def paths(*inputs):
        return bi_path_contrast(*inputs, *weights, Collectives(), [5], block, keep)

    assert torch.autograd.gradcheck(paths, (*leaves, scale))
    assert torch.autograd.gradcheck(lambda *inputs: 3 * paths(*inputs)[1], (*leaves, scale))

    off = AdaptiveContrastiveLoss(False, False, use_sample_weight=False, chunk_size=block, logits_cache_bytes=keep)
    assert torch.autograd.gradcheck(lambda *inputs: off(*inputs).loss, (*leaves, scale))


def test_weight_of_zero_takes_a_sample_out_as_an_anchor():
    features = make_features(20, 8, 0)
    leaves = [f.clone().requires_grad_() for f in features]
    weight = torch.ones(20)
    weight[4] = 0
    scale = torch.tensor(10.0, requires_grad=True)
    sum(bi_path_contrast(*leaves, scale, weight, weight, Collectives(), [20])).backward()
    one = torch.ones(20)
    expected = reference_step(*features, 10.0, [1.0] * 3, weights=(weight, one, one))
    for leaf, name in zip((*leaves, scale), NAMES):
        assert torch.allclose(leaf.grad.double(), expected.gradients[name], atol=1e-6), name


def test_each_path_can_be_differentiated_alone_and_twice():
    features = make_features(40, 8, 0)
    leaves = [f.clone().requires_grad_() for f in features]
    output = AdaptiveContrastiveLoss(chunk_size=16)(*leaves, torch.tensor(10.0))
    text = torch.autograd.grad(output.text_loss, leaves[:2], retain_graph=True)
    caption = torch.autograd.grad(output.caption_loss, [leaves[0], leaves[2]], retain_graph=True)
    both = torch.autograd.grad(output.loss, leaves, retain_graph=True)
    again = torch.autograd.grad(-2 * output.loss, leaves)
    assert torch.allclose(both[0], text[0] + caption[0], atol=1e-7)
    assert torch.equal(both[1], text[1]) and torch.equal(both[2], caption[1])
    assert all(torch.allclose(-2 * b, a, atol=1e-7) for a, b in zip(again, both))


def test_outputs_are_detached_and_of_this_batch():
    leaves = [f.requires_grad_() for f in make_features(12, 8, 0, dtype=torch.bfloat16)]
    output = AdaptiveContrastiveLoss()(*leaves, torch.tensor([10.0], requires_grad=True))
    assert output.loss.shape == () and output.loss.requires_grad and output.loss.dtype == torch.float32
    assert torch.equal(output.loss, output.text_loss + output.caption_loss)
    for name in WEIGHTS + SIMILARITIES:
        assert getattr(output, name).shape == (12,) and not getattr(output, name).requires_grad
    with torch.no_grad():
        assert not AdaptiveContrastiveLoss()(*leaves, torch.tensor(10.0)).loss.requires_grad


def test_autocast_changes_nothing():
    features = make_features(60, 16, 0)
    plain = step(AdaptiveContrastiveLoss(chunk_size=32), features, 90.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # forward and backward
        cast = step(AdaptiveContrastiveLoss(chunk_size=32), features, 90.0)
    assert torch.equal(plain.loss, cast.loss)
    assert all(torch.equal(plain.gradients[name], cast.gradients[name]) for name in NAMES)


@pytest.mark.parametrize(("keep", "backward_products"), [(0, 3), (1 << 30, 2)])
def test_products_and_memory(keep, backward_products):
    """One product per path serves both directions; nothing as large as N × N is ever made."""
    n, dim, block = 600, 16, 64
    leaves = [f.requires_grad_() for f in make_features(n, dim, 0)]
    loss_fn = AdaptiveContrastiveLoss(chunk_size=block, logits_cache_bytes=keep)
    with Watch() as forward:
        output = loss_fn(*leaves, torch.tensor(10.0))
    with Watch() as backward:
        output.loss.backward()
    assert forward.products == 2 * n * n * dim
    assert backward.products == backward_products * 2 * n * n * dim
    assert max(forward.largest, backward.largest) == max(n * dim, 3 * block**2)


@pytest.mark.parametrize("broken", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_named_and_leaves_the_history(broken, value):
    inputs = dict(zip(NAMES, [*make_features(9, 4, 0), torch.tensor(10.0)]))
    loss_fn = AdaptiveContrastiveLoss()
    loss_fn(**inputs)
    before = loss_fn.history.clone()
    bad = {**inputs, broken: inputs[broken].clone()}
    bad[broken].view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=f"^{broken} ") as error:
        loss_fn(**bad)
    assert broken == "logit_scale" or "1 on rank 0" in str(error.value)
    assert torch.equal(loss_fn.history, before)

    unchecked = AdaptiveContrastiveLoss(check_finite=False)
    unchecked(**bad)
    assert unchecked.history.isfinite().all()


def test_wrong_shapes_and_settings():
    x, t, c = make_features(6, 4, 0)
    scale = torch.tensor(10.0)
    loss_fn = AdaptiveContrastiveLoss()
    for features in ((x, t[:5], c), (x, t, c[:, :3]), (x[0], t[0], c[0])):
        with pytest.raises(ValueError, match="of one shape"):
            loss_fn(*features, scale)
    with pytest.raises(ValueError, match="logit_scale"):
        loss_fn(x, t, c, torch.ones(2))
    with pytest.raises(ValueError, match="empty"):
        loss_fn(x[:0], t[:0], c[:0], scale)
    assert (loss_fn.history == 1).all()
    for wrong in ({"history_momentum": 1.5}, {"chunk_size": 0}, {"logits_cache_bytes": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AdaptiveContrastiveLoss(**wrong)


def test_names_from_before_still_work_with_a_warning():
    for old, new, value in (
        ("momentum", "history_momentum", 0.5),
        ("block_size", "chunk_size", 7),
        ("keep_bytes", "logits_cache_bytes", 100),
    ):
        with pytest.warns(DeprecationWarning, match=new):
            assert getattr(AdaptiveContrastiveLoss(**{old: value}), new) == value
    with pytest.warns(DeprecationWarning, match="history_init"):
        assert AdaptiveContrastiveLoss(initial_similarity=None).history.isnan().all()
    with pytest.raises(TypeError, match="no setting 'gamma'"):
        AdaptiveContrastiveLoss(gamma=2.0)


@pytest.mark.parametrize(("objective", "number"), [("clip-text", 1), ("clip-caption", 2)])
def test_clip_objectives(objective, number):
    """CLIP on one text is symmetric cross-entropy of image and that text; the other text gets no gradient."""
    features, scale = make_features(24, 16, 5, "noisy"), 20.0
    got = step(AdaptiveContrastiveLoss(objective=objective, chunk_size=7), features, scale)
    gated = step(AdaptiveContrastiveLoss(), features, scale)

    image, text = (features[k].double().clone().requires_grad_() for k in (0, number))
    logits, own = scale * image @ text.T, torch.arange(24)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    expected.backward()
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (got.text_loss, got.caption_loss)[2 - number] == 0
    for name, gradient in ((NAMES[0], image.grad), (NAMES[number], text.grad)):
        torch.testing.assert_close(got.gradients[name].double(), gradient, rtol=1e-4, atol=1e-7)
    assert not got.gradients[NAMES[3 - number]].any()
    assert all((getattr(got, name) == 1).all() for name in WEIGHTS)
    assert torch.equal(got.history, gated.history)  # what is logged of the gates' inputs stays comparable


def test_unknown_objective():
    with pytest.raises(ValueError, match="alip, clip-text, clip-caption"):
        AdaptiveContrastiveLoss(objective="clip")


@pytest.mark.parametrize("cast", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.float64)])
def test_the_history_stays_fp32(cast):
    module = nn.ModuleDict({"loss": AdaptiveContrastiveLoss(history_init=0.123456789)})
    before = module["loss"].history.clone()
    cast(module)
    assert module["loss"].history.dtype == torch.float32 and module["loss"].history.equal(before)
    on_meta = AdaptiveContrastiveLoss().to("meta").to(torch.bfloat16)
    assert on_meta.history.is_meta and on_meta.history.dtype == torch.float32
    assert on_meta.to_empty(device="cpu").history.dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        *({name: value} for name in ("gamma_sample", "gamma_pair") for value in (-1, math.nan, math.inf)),
        *({"history_init": value} for value in (2, -1.5, math.nan)),
        {"chunk_size": 1.5},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AdaptiveContrastiveLoss(**settings)


def test_what_is_no_feature_or_scale():
    x = F.normalize(torch.randn(4, 8), dim=1)
    with pytest.raises(TypeError, match="logit_scale must be a tensor"):
        AdaptiveContrastiveLoss()(x, x, x, 10.0)
    with pytest.raises(ValueError, match="features must be floating point"):
        AdaptiveContrastiveLoss()(x, x.long(), x, torch.tensor(10.0))


def test_a_second_derivative_is_refused():
    """Not taken for zero, as for a gradient penalty it would be in silence."""
    x, t, c = (F.normalize(torch.randn(4, 8), dim=1).requires_grad_() for _ in range(3))
    loss = AdaptiveContrastiveLoss()(x, t, c, torch.tensor(10.0)).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)
