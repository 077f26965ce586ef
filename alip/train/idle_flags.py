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
    "cycle_beta1": (lambda args: args.lr_scheduler == "one-cycle", "--lr-scheduler one-cycle"),
}


def idle_flags(given: argparse.Namespace, args: argparse.Namespace, defaults: dict[str, Any]) -> list[str]:
    """What is wrong with flags that do nothing. given: the command line's values, without what a preset sets."""
    found = []
    for name, (works, owner) in _BELONGS.items():
        if getattr(given, name) != defaults[name] and not works(args):
            found.append(f"--{name.replace('_', '-')} belongs to {owner}, and would do nothing: leave it out")
    return found
