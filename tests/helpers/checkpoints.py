"""A real, small training state and its checkpoint, and the many ways in which the file of one can be wrong."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path
from typing import Any

import torch

from alip.checkpoint import atomic_save
from alip.distributed import World
from alip.train.ema import EMA
from alip.train.meter import Meter
from alip.train.optimizer import create_optimizer
from alip.train.state import TrainState
from alip.train.step import TrainStep
from tests.helpers.steps import CPU, make_batch, make_model

SMALL_MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
}


def make_state(config: Any = SMALL_MODEL, steps: int = 0, **optimizer_settings) -> TrainState:
    """A training state after so many steps on random batches."""
    from alip.loss import AdaptiveContrastiveLoss

    model = make_model(config)
    loss = AdaptiveContrastiveLoss(check_finite=False, even_batches=True)
    optimizer = create_optimizer(model, **{"lr": 1e-3, **optimizer_settings})
    state = TrainState(model, loss, optimizer, Meter(CPU), ema=EMA(model, 0.9))
    train_step = make_train_step(state)
    for number in range(steps):
        state.meter.add(train_step([make_batch(4, seed=number)], 1e-3))
        state.advance(4, 100)
    return state


def make_train_step(state: TrainState) -> TrainStep:
    return TrainStep(state.model, state.loss, state.optimizer, CPU, ema=state.ema)


def fingerprint_of(state: TrainState) -> dict[str, Any]:
    return {
        "data": {"name": "tiny", "samples": 100, "fingerprint": "abc"},
        "model": state.model.config,
        "recipe": {"lr": 1e-3, "seed": 0},
        "layout": {"world_size": 1, "batch_size": 4, "accum_freq": 1},
        "numerics": {"precision": "fp32"},
    }


def content_of(state: TrainState) -> dict[str, Any]:
    """The checkpoint of a state, independent of what happens to the state later."""
    return copy.deepcopy(state.capture(World(), fingerprint_of(state)))


def same(a: Any, b: Any) -> bool:
    """Whether two contents are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return both and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def write_damaged(path: Path, content: dict[str, Any], generator: random.Random) -> str:
    """Writes a checkpoint with one random fault in its bytes or in its content; returns what was done."""
    if generator.random() < 0.5:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = bytearray(buffer.getvalue())
        done = _damage_bytes(data, generator)
        path.write_bytes(data)
        return done
    content = copy.deepcopy(content)
    done = _damage_content(content, generator)
    try:
        atomic_save(content, path)
    except Exception:  # not everything can be saved: a quantity that cannot be is no case
        atomic_save({**content, "model": None}, path)
        done = "model = None"
    return done


def _damage_bytes(data: bytearray, generator: random.Random) -> str:
    position, size = generator.randrange(len(data)), generator.choice((1, 16, 512, 4096, 65536))
    if generator.random() < 0.3:  # the archive's directory and the pickle are small, and most faults there matter
        position = generator.choice((generator.randrange(2048), len(data) - 1 - generator.randrange(8192)))
    kind = generator.choice(("bit", "bits", "cut", "zeros", "removed", "inserted", "noise"))
    if kind == "bit":
        data[position] ^= 1 << generator.randrange(8)
    elif kind == "bits":
        for _ in range(20):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == "cut":
        del data[position:]
    elif kind == "zeros":
        end = min(len(data), position + size)
        data[position:end] = bytes(end - position)
    elif kind == "removed":
        del data[position : position + size]
    elif kind == "inserted":
        data[position:position] = generator.randbytes(size)
    else:
        end = min(len(data), position + size)
        data[position:end] = generator.randbytes(end - position)
    return f"{kind} at {position}"


def _damage_content(content: dict[str, Any], generator: random.Random) -> str:
    """Replaces, removes or adds one value somewhere in the content."""
    container, key, trail = content, generator.choice(list(content)), []
    while True:
        trail.append(str(key))
        value = container[key]
        inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not inner or generator.random() < 0.3:
            break
        container, key = value, generator.choice(inner)
    where = ".".join(trail)
    if generator.random() < 0.2 and isinstance(container, dict):
        del container[key]
        return f"{where} removed"
    if generator.random() < 0.1 and isinstance(container, dict):
        container[generator.choice((7, "strange", None, (1, 2)))] = container.pop(key)
        return f"{where} under another name"
    name, replacement = _replacement(container[key], generator)
    container[key] = replacement
    return f"{where} = {name}"


def _replacement(value: Any, generator: random.Random) -> tuple[str, Any]:
    choices: dict[str, Any] = {
        "None": None,
        "a list": [1, "two", None],
        "a string": "strange",
        "a negative number": -7,
        "a huge number": 10**30,
        "NaN": float("nan"),
        "a table": {"strange": [1]},
        "true": True,
        "an empty tensor": torch.zeros(0),
        "a meta tensor": torch.zeros(3, device="meta"),
        "a sparse tensor": torch.eye(3).to_sparse(),
    }
    if isinstance(value, torch.Tensor) and value.numel() > 0:
        if value.is_floating_point():
            spoiled = value.clone()
            spoiled.view(-1)[generator.randrange(value.numel())] = generator.choice((float("nan"), float("inf")))
            choices |= {"itself with NaN or infinity": spoiled, "itself as integers": value.nan_to_num().long()}
        choices |= {
            "itself, one longer": torch.cat([value.reshape(-1), value.reshape(-1)[:1]]),
            "itself on meta": value.to("meta"),
            "itself, sparse": value.to_sparse() if value.dim() else value.reshape(1).to_sparse(),
        }
    name = generator.choice(list(choices))
    return name, choices[name]
