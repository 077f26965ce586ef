"""Flags that would be recorded as settings and do nothing, because the flag that they belong to is not there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from alip.remote.urls import is_url

# flag (dest) → when it does something, and what it belongs to. A value other than its default is refused otherwise.
_BELONGS: dict[str, tuple[Callable[[argparse.Namespace], Any], str]] = {
    "window_shards": (lambda args: args.data_order == "shards", "--data-order shards"),
    "cache_size": (lambda args: is_url(args.train_data or ""), "--train-data at a URL"),
    "lock_image_unlocked_groups": (lambda args: args.lock_image, "--lock-image"),
    "lock_image_freeze_bn_stats": (lambda args: args.lock_image, "--lock-image"),
    "lock_text_unlocked_layers": (lambda args: args.lock_text, "--lock-text"),
    "lock_text_freeze_layer_norm": (lambda args: args.lock_text, "--lock-text"),
    "cooldown": (lambda args: args.lr_scheduler == "const-cooldown", "--lr-scheduler const-cooldown"),
    "beta1": (lambda args: not args.cycle_beta1 or args.lr_scheduler != "one-cycle", "--no-cycle-beta1"),
    "gamma_sample": (lambda args: _gated(args) and not args.no_sample_weight, "--objective alip with the weight W^s"),
    "gamma_pair": (
        lambda args: _gated(args) and not (args.no_text_weight and args.no_caption_weight),
        "--objective alip with the weights W^t or W^c",
    ),
    "no_sample_weight": (lambda args: _gated(args), "--objective alip"),
    "no_text_weight": (lambda args: _gated(args), "--objective alip"),
    "no_caption_weight": (lambda args: _gated(args), "--objective alip"),
    "cycle_beta1": (lambda args: args.lr_scheduler == "one-cycle", "--lr-scheduler one-cycle"),
}


def _gated(args: argparse.Namespace) -> bool:
    return args.objective == "alip"


def idle_flags(given: argparse.Namespace, args: argparse.Namespace, defaults: dict[str, Any]) -> list[str]:
    """What is wrong with flags that do nothing. given: the command line's values, without what a preset sets."""
    found = []
    for name, (works, owner) in _BELONGS.items():
        if getattr(given, name) != defaults[name] and not works(args):
            found.append(f"--{name.replace('_', '-')} belongs to {owner}, and would do nothing: leave it out")
    return found
