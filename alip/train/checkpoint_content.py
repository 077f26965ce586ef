"""What a training checkpoint holds, checked before anything is restored: files can be damaged or made by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from alip.errors import UserError
from alip.train.meter import NAMES

FORMAT, VERSION = "alip-checkpoint", 1
_COUNTERS = ("step", "epoch", "position", "samples", "ema_steps")
_PARTS = ("data", "model", "recipe", "layout", "numerics")


class _Wrong(Exception):
    """What is wrong, in words."""


def check_content(content: Any, source: object) -> None:
    """Checks types, shapes and numbers of a checkpoint under the present keys; UserError with `source` if unusable."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or "optimizer" not in content:
        raise UserError(
            f"{source}: holds weights only, not a training state; to start from its weights use --pretrained"
        )
    version = content.get("version")
    if not isinstance(version, int) or version != VERSION:
        found = version if isinstance(version, int | float | str) else f"of type {type(version).__name__}"
        raise UserError(f"{source}: checkpoint version {found}, this code reads version {VERSION}: update it")
    try:
        _check_weights(content)
        _check_optimizer(content)
        _check_counters(content)
        _check_fingerprint(content)
        _check_ranks(content)
    except _Wrong as wrong:
        raise UserError(f"{source}: {wrong}; use another checkpoint") from wrong
    except Exception as error:  # operations that a strange tensor does not have, and the like
        raise UserError(f"{source}: holds strange values ({type(error).__name__}); use another checkpoint") from error


def check_shapes(weights: dict[str, torch.Tensor], model: dict[str, torch.Tensor], source: object) -> None:
    """Checks a checkpoint's weights against the state dict of the model that it names."""
    ours, theirs = ({k: (v.shape, v.is_floating_point()) for k, v in state.items()} for state in (model, weights))
    if ours != theirs:
        raise UserError(f"{source}: its weights are not those of the model that it names; use another checkpoint")


def _require(condition: bool, wrong: str) -> None:
    if not condition:
        raise _Wrong(wrong)


def _get(container: dict, key: str, *types: type) -> Any:
    _require(key in container, f"it has no {key!r}")
    value = container[key]
    fits = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
    names = " or ".join("nothing" if t is type(None) else t.__name__ for t in types)
    _require(fits, f"its {key!r} is of type {type(value).__name__}, not {names}")
    return value


def _is_dense(tensor: Any) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and tensor.device.type == "cpu"
    )


def _is_plain(value: Any) -> bool:
    """Finite numbers, texts, types of tensors (timm's Adafactor keeps one), and lists and tables of them."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | str | torch.dtype | None) or (_is_python_number(value) and math.isfinite(value))


def _is_python_number(value: Any) -> bool:
    """A float, infinity and NaN among them, or a whole number that a tensor can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)


def _is_number(tensor: Any) -> bool:
    return _is_dense(tensor) and tensor.numel() == 1 and bool(torch.isfinite(tensor).all())


def _check_tensors(tensors: Iterable[tuple[str, Any]]) -> None:
    """Dense, with content, and finite."""
    for name, tensor in tensors:
        _require(_is_dense(tensor), f"{name} is no tensor with values on a CPU")
        if tensor.is_floating_point() or tensor.is_complex():
            _require(bool(torch.isfinite(tensor).all()), f"{name} holds values that are not finite")


def _check_weights(content: dict) -> None:
    model, ema = _get(content, "model", dict), _get(content, "ema", dict, type(None))
    _require(len(model) > 0 and all(isinstance(name, str) for name in model), "its 'model' has no named tensors")
    _check_tensors(model.items())
    if ema is not None:
        _require(ema.keys() == model.keys(), "its 'ema' has other tensors than its 'model'")
        _check_tensors((f"{name} of the EMA", tensor) for name, tensor in ema.items())
        same = all(ema[name].shape == model[name].shape and ema[name].dtype == model[name].dtype for name in model)
        _require(same, "its 'ema' has other shapes or types than its 'model'")
    history = _get(_get(content, "loss", dict), "history", torch.Tensor)
    # NaN: no batch yet.
    _require(_is_dense(history) and history.shape == (3,) and not bool(history.isinf().any()), "its history is damaged")


def _check_optimizer(content: dict) -> None:
    optimizer, model = _get(content, "optimizer", dict), content["model"]
    states, groups = _get(optimizer, "state", dict), _get(optimizer, "param_groups", list)
    _require(all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups), "no groups")
    numbers = [number for group in groups for number in group["params"]]
    _require(
        all(_is_plain(value) or _is_number(value) for group in groups for value in group.values()),
        "its optimizer's groups hold strange values",
    )
    _require(sorted(map(repr, numbers)) == sorted(map(repr, range(len(numbers)))), "its parameters are misnumbered")
    _require(all(isinstance(state, dict) for state in states.values()), "its moments are no tables")
    _require(states.keys() <= set(numbers), "it has moments of unknown parameters")
    names = optimizer.get("names")
    if names is not None:
        known = isinstance(names, list) and all(isinstance(name, str) and name in model for name in names)
        _require(known and len(names) == len(numbers), "its optimizer's names are not the model's")
        settings = optimizer.get("settings")
        tables = isinstance(settings, list) and all(isinstance(part, dict) for part in settings)
        _require(tables and _is_plain(settings), "its optimizer's settings are damaged")
        _require(isinstance(optimizer.get("class"), str), "its optimizer's class has no name")
    for number, state in states.items():
        name = names[numbers.index(number)] if names is not None else str(number)
        plain = names is not None and optimizer["class"] == "AdamW"
        _check_moments(name, state, model[name].shape if plain else None)
    scaler = _get(content, "scaler", dict, type(None))
    if scaler is not None:
        numbers = all(map(_is_python_number, scaler.values()))
        _require("scale" in scaler and numbers, "its gradient scaler's state is damaged")


def _check_moments(name: str, state: dict, shape: torch.Size | None) -> None:
    _check_tensors((f"{key} of {name}", v) for key, v in state.items() if isinstance(v, torch.Tensor))
    for key, value in state.items():
        _require(
            isinstance(value, torch.Tensor | int | float | list | tuple | type(None)), f"{key} of {name} is damaged"
        )
        if shape is not None and key in ("exp_avg", "exp_avg_sq"):
            whole = isinstance(value, torch.Tensor) and value.is_floating_point()
            _require(whole and value.shape == shape, f"{key} of {name} is damaged")
        if key == "step":
            _require(_is_number(value) or _is_python_number(value), f"the step of {name} is no number")


def _check_counters(content: dict) -> None:
    for key in _COUNTERS:
        _require(0 <= _get(content, key, int) < 1 << 53, f"its {key!r} is no count")
    for name, value in _get(content, "best", dict).items():
        number = _is_python_number(value) and math.isfinite(value)
        _require(isinstance(name, str) and number, "its 'best' is no table of numbers")


def _check_fingerprint(content: dict) -> None:
    fingerprint = _get(content, "fingerprint", dict)
    _require(_is_plain(fingerprint) and _is_plain(content.get("model_config")), "its settings are no plain values")
    for part in _PARTS:
        _require(isinstance(fingerprint.get(part), dict), f"its fingerprint has no {part!r}")
    _require(isinstance(fingerprint["numerics"].get("precision", ""), str), "its fingerprint's precision is no name")
    for key in ("world_size", "batch_size", "accum_freq"):
        value = fingerprint["layout"].get(key)
        _require(isinstance(value, int) and value > 0, f"its fingerprint has no {key!r}")
    _get(content, "model_config", dict)


def _check_ranks(content: dict) -> None:
    ranks = _get(content, "ranks", list)
    _require(len(ranks) > 0 and all(isinstance(rank, dict) for rank in ranks), "it has no state of its ranks")
    for rank in ranks:
        meter, gates = rank.get("meter"), rank.get("gates")
        _require(_is_dense(meter) and meter.shape == (len(NAMES) + 1,), "its log's sums are damaged")
        _check_randomness(_get(rank, "rng", dict))
        if gates is not None:
            _require(isinstance(gates, dict), "its gates' values are damaged")
            index, values = gates.get("index"), gates.get("values")
            fits = _is_dense(index) and index.ndim == 1 and index.dtype == torch.int64 and _is_dense(values)
            _require(fits and values.shape == (2, len(index)), "its gates' values are damaged")


def _check_randomness(state: dict) -> None:
    """By giving the states to generators of no importance."""
    try:
        torch.Generator().set_state(state["torch"])
        name, keys, position, has_gauss, gauss = state["numpy"]
        np.random.RandomState().set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version, internal, gauss_next = state["python"]
        random.Random().setstate((version, tuple(internal), gauss_next))
        cuda = state["cuda"]
    except Exception as error:
        raise _Wrong("its random numbers' state is damaged") from error
    _require(cuda is None or (_is_dense(cuda) and cuda.dtype == torch.uint8), "its random numbers' state is damaged")
