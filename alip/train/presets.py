"""Whole recipes by name: `--preset NAME` sets these defaults, and other flags override its parts."""

from __future__ import annotations

from typing import Any

GLOBAL_BATCH = 4096  # the paper's: samples of one optimizer step, over all ranks
# The recipe of the paper's YFCC15M runs, ViT-B/32, global batch 4096 (set by --batch-size x ranks x --accum-freq).
PAPER: dict[str, Any] = {
    "epochs": 32,
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.98,
    "wd": 0.2,
    "decay_all": False,
    "grad_clip_norm": 1.0,
    "lr_scheduler": "one-cycle",
    "warmup": "0.1",
    "cycle_beta1": False,
    "gamma_sample": 2.0,
    "gamma_pair": 2.0,
    "history_momentum": 0.99,
    "history_init": 1.0,
    "crop_area": (0.7, 1.0),
    "crop_aspect": (0.8, 1.25),
    "flip": 0.5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "alip-paper": PAPER,
    # What the released code did beside the paper: everything decayed; OneCycleLR replaced beta1 by its own (0.95 to
    # 0.85); and the gradient that was clipped at 1 was 1/16 of the true one (16 ranks, gathered features without
    # gradient), which is clipping the true one at 16. AdamW itself does not see the factor.
    "alip-released": {**PAPER, "decay_all": True, "cycle_beta1": True, "grad_clip_norm": 16.0},
}
