"""The optimizer, and what it decays."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from alip.errors import UserError

ADAMW: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6}

# Parameters with two or more dimensions that mark positions or classes rather than mix features.
_POSITIONS = ("positional_embedding", "class_embedding", "pos_embed", "cls_token", "position_bias", "logit_scale")

# Arguments of optimizers that would be recorded and do nothing here, or fail at the first step: what to do instead.
_GROUPS = "weight decay is chosen by --wd and --decay-all, and every parameter has the schedule's learning rate"
_NOT_HERE = {
    "lr": "it is --lr",
    "weight_decay": "it is --wd",
    **dict.fromkeys(("layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale", "param_group_fn"), _GROUPS),
    **dict.fromkeys(("filter_bias_and_bn", "weight_decay_exclude_1d", "fallback_no_weight_decay"), _GROUPS),
    **dict.fromkeys(("capturable", "differentiable"), "steps are neither captured nor differentiated; leave it out"),
}


def decays(name: str, parameter: torch.Tensor) -> bool:
    """True where weight decay belongs: matrices and filters; not biases, norms, positions, logit_scale."""
    return parameter.ndim >= 2 and not any(part in name for part in _POSITIONS)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers a model has, and how many of them are trained."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trains in counts if trains)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: what this rank's optimizer moves}: its own part of a divided parameter (--fsdp), else the parameter."""
    return getattr(model, "own_parts", None) or dict(model.named_parameters())


def create_optimizer(
    model: nn.Module,
    lr: float,
    beta1: float | None = None,
    beta2: float | None = None,
    eps: float | None = None,
    weight_decay: float = 0.2,
    decay_all: bool = False,
    opt: str = "adamw",
    opt_kwargs: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the parameters that are not locked, in two groups: with and without weight decay.

    decay_all: decay every parameter, as the released runs did.
    opt: "adamw" or "timm/NAME", a name that `timm.optim.list_optimizers()` gives. opt_kwargs: further arguments of it.
    beta1, beta2, eps: None is 0.9, 0.98 and 1e-6 for adamw, and the optimizer's own for timm's.
    Raises UserError for an unknown optimizer, for arguments that it does not take, and for those that are flags here.
    """
    named = [(name, p) for name, p in own_parameters(model).items() if p.requires_grad]
    decayed = [p for name, p in named if decay_all or decays(name, p)]
    others = [p for name, p in named if not (decay_all or decays(name, p))]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, weight_decay), (others, 0.0))
        if parameters
    ]
    options: dict[str, Any] = {"lr": lr}
    if (beta1 is None) != (beta2 is None):
        raise UserError("give both of --beta1 and --beta2, or neither")
    if beta1 is not None:
        options["betas"] = (beta1, beta2)
    if eps is not None:
        options["eps"] = eps
    for name in opt_kwargs or {}:
        own = name in options or (opt == "adamw" and name in ADAMW)
        answer = "it is --beta1 and --beta2" if own and name == "betas" else "it is --eps" if own else None
        if answer := _NOT_HERE.get(name, answer):
            raise UserError(f"--opt-kwargs {name}: {answer}")
    options |= opt_kwargs or {}
    try:
        if opt == "adamw":
            # The fused form is used on the CPU too: one pass over memory, and it can leave out a step on the device
            # (see alip.train.step), so that nothing waits for the GPU to report whether a gradient was finite.
            return torch.optim.AdamW(groups, **{**ADAMW, "fused": True, **options})
        return _timm_optimizer(opt, groups, options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"--opt {opt} with {_words(options)}: {error}") from error


def _timm_optimizer(opt: str, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    name = opt.removeprefix("timm/")
    known = list_optimizers()
    if name.startswith("lookahead_"):
        raise UserError(f"--opt {opt}: timm's lookahead cannot be resumed from a checkpoint; leave the prefix out")
    if not opt.startswith("timm/") or name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f", for instance {' or '.join(f'timm/{one}' for one in near)}" if near else ""
        raise UserError(f"--opt {opt}: choose adamw, or timm/NAME with a name of timm.optim.list_optimizers(){hint}")
    about = get_optimizer_info(name)
    for given, has in (("betas", about.has_betas), ("eps", about.has_eps)):
        if given in options and not has:
            raise UserError(f"--opt {opt} has no {given}")
    if about.second_order:
        raise UserError(f"--opt {opt}: it needs second derivatives, which the loss does not give")
    return create_optimizer_v2(groups, opt=name, **options)


def _words(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def gradient_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The length of all gradients together, as one vector: a scalar on their device."""
    if gradients[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(gradients)
    # On a CPU torch reads a whole tensor on one thread, but its rows on all.
    rows = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat(rows))
