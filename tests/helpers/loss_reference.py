"""The slow, obvious form of equations 1 to 6, in float64, with every logit written out.

`reference_step` is what the fast loss is compared with in the other loss tests.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("image_features", "text_features", "caption_features", "logit_scale")
WEIGHTS = ("sample_weight", "text_weight", "caption_weight")
SIMILARITIES = ("text_caption_similarity", "image_text_similarity", "image_caption_similarity")


def reference_step(
    image_features: Tensor,
    text_features: Tensor,
    caption_features: Tensor,
    logit_scale: float,
    history: list[float] | None,
    gamma_sample: float = 2.0,
    gamma_pair: float = 2.0,
    history_momentum: float = 0.99,
    use: tuple[bool, bool, bool] = (True, True, True),
    weights: tuple[Tensor, Tensor, Tensor] | None = None,
) -> SimpleNamespace:
    """One step on the whole batch, features (N, D) of any type: values, weights, new history and the four gradients.

    history: [tc, xt, xc] before the step, None for "start from this batch". weights: given W_s, W_t, W_c, instead of
    the gates' own.
    """
    x, t, c = (f.detach().double().requires_grad_() for f in (image_features, text_features, caption_features))
    scale = torch.tensor(float(logit_scale), dtype=torch.float64, requires_grad=True)
    n = len(x)

    with torch.no_grad():
        S_tc = torch.stack([torch.dot(t[i], c[i]) for i in range(n)])
        S_xt = torch.stack([torch.dot(x[i], t[i]) for i in range(n)])
        S_xc = torch.stack([torch.dot(x[i], c[i]) for i in range(n)])
        means = [float(S.mean()) for S in (S_tc, S_xt, S_xc)]
        if history is None:
            new_history = means
        else:
            new_history = [
                history_momentum * h + (1 - history_momentum) * mean for h, mean in zip(history, means)
            ]  # equations 1 and 3
        H_tc, H_xt, H_xc = new_history

        W_s, W_t, W_c = torch.ones(3, n, dtype=torch.float64)
        for i in range(n):
            gate = math.exp((S_tc[i] - H_tc) * gamma_sample) if S_tc[i] <= H_tc else 1.0  # equation 2
            if use[0]:
                W_s[i] = gate
            if gate < 1 and use[1]:
                W_t[i] = math.exp((S_xt[i] - H_xt) * gamma_pair)  # equation 4
            if gate < 1 and use[2]:
                W_c[i] = math.exp((S_xc[i] - H_xc) * gamma_pair)
        if weights is not None:
            W_s, W_t, W_c = (w.double() for w in weights)

    labels = torch.arange(n)

    def path(y: Tensor, W_pair: Tensor) -> Tensor:  # equations 5 and 6, with the released scale
        from_image = F.cross_entropy(scale * x @ y.T, labels, reduction="none")
        from_text = F.cross_entropy(scale * y @ x.T, labels, reduction="none")
        return (W_s * W_pair * (from_image + from_text) / 2).mean()

    text_loss, caption_loss = path(t, W_t), path(c, W_c)
    loss = text_loss + caption_loss
    gradients = torch.autograd.grad(loss, (x, t, c, scale))
    return SimpleNamespace(
        loss=loss.detach(),
        text_loss=text_loss.detach(),
        caption_loss=caption_loss.detach(),
        sample_weight=W_s,
        text_weight=W_t,
        caption_weight=W_c,
        text_caption_similarity=S_tc,
        image_text_similarity=S_xt,
        image_caption_similarity=S_xc,
        history=torch.tensor(new_history),
        gradients=dict(zip(NAMES, gradients)),
        natural_size=dict(zip(NAMES, [logit_scale / n] * 3 + [1.0])),
    )


def make_features(n: int, dim: int, seed: int, case: str = "noisy", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Image, text and caption features (n, dim), normalised before they are rounded to `dtype`.

    case: "random": nothing matches; "noisy": most match, a third of the texts belong to other images; "identical":
    all rows of the batch are one vector; "opposite": texts are minus the images, captions minus the texts;
    "duplicates": few distinct samples, many times each; "mixed": half of the samples opposite, half identical pairs.
    """
    g = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(n, dim, generator=g, dtype=torch.float64)

    x = noise()
    if case == "random":
        x, t, c = x, noise(), noise()
    elif case == "noisy":
        x = F.normalize(x, dim=1)
        t, c = x + 0.1 * noise(), x + 0.15 * noise()
        wrong = torch.rand(n, generator=g) < 0.3
        t[wrong] = noise()[wrong]
    elif case == "identical":
        x = x[:1].expand(n, dim)
        t = c = x
    elif case == "opposite":
        t, c = -x, x
    elif case == "duplicates":
        picks = torch.randint(max(1, n // 8), (n,), generator=g)
        x, t, c = x[picks], noise()[picks], noise()[picks]
    elif case == "mixed":
        sign = torch.where(torch.rand(n, 1, generator=g) < 0.5, -1.0, 1.0).double()
        t, c = sign * x, x
    else:
        raise ValueError(case)
    return [F.normalize(f, dim=1).to(dtype) for f in (x, t, c)]


def check_against(expected: SimpleNamespace, got: SimpleNamespace, rows: slice, what: str) -> None:
    """Compares a step's losses, weights, similarities, history and gradients with the reference's.

    rows: the part of the global batch that `got` speaks of. A gradient's error is measured against the reference's
    largest entry or, where that is nearly 0, against 10 % of what a sample that is all wrong would have. Gradients of
    bf16 features are rounded to bf16 at the very end, up to twice, and are given that much.
    """
    for name in ("loss", "text_loss", "caption_loss"):
        value, wanted = getattr(got, name).item(), getattr(expected, name).item()
        assert abs(value - wanted) <= 1e-6 * max(1.0, abs(wanted)), f"{what}: {name} {value} != {wanted}"
    for name in WEIGHTS + SIMILARITIES:
        value, wanted = getattr(got, name).double(), getattr(expected, name)[rows]
        assert value.shape == wanted.shape, f"{what}: {name}"
        assert torch.allclose(value, wanted, rtol=2e-6, atol=1e-6), f"{what}: {name}"
    assert torch.allclose(got.history, expected.history, rtol=0, atol=2e-6), f"{what}: history {got.history}"
    for name in NAMES:
        value, wanted = got.gradients[name].double(), expected.gradients[name]
        if name != "logit_scale":
            wanted = wanted[rows]
        assert value.shape == wanted.shape, f"{what}: {name}"
        size = max(float(expected.gradients[name].abs().max()), 0.1 * expected.natural_size[name])
        worst = float((value - wanted).abs().max()) if wanted.numel() else 0.0
        tolerance = 8e-3 if got.gradients[name].dtype == torch.bfloat16 else 4e-5
        assert worst <= tolerance * size, f"{what}: gradient of {name} off by {worst} of {size}"


class Watch(TorchDispatchMode):
    """Counts the multiplications of matrix products and the size of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result
