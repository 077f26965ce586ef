"""The flags that both evaluations have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from alip import command
from alip.cluster.ray_engine import add_flags as add_engine_flags
from alip.cluster.ray_engine import check_flags as check_engine_flags
from alip.cluster.ray_engine import engine_of
from alip.cpu_memory import keep_freed_memory
from alip.distributed import World
from alip.errors import UserError
from alip.eval.feature_cluster import FeatureCluster, ModelSource
from alip.eval.features import Encoding
from alip.eval.prompts import PROTOCOLS, canonical_protocol
from alip.model.precision import canonical


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for model, data, computing and output."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint",
        required=True,
        help="a run folder, a checkpoint file, released weights, an open_clip or HF folder",
    )
    model.add_argument("--model", help="the model's name or config, where the weights do not name it")
    model.add_argument("--weights", default="model", choices=("model", "ema"), help="plain weights or the EMA's")

    data = parser.add_argument_group("data")
    data.add_argument("--data-root", default="data", help="the folder that holds the datasets (default: data)")
    data.add_argument(
        "--protocol",
        type=canonical_protocol,
        default="standard",
        metavar="NAME",
        help="; ".join(f"{name}: {meaning}" for name, meaning in PROTOCOLS.items()) + " (default: standard)",
    )

    computing = parser.add_argument_group("computing")
    computing.add_argument("--batch-size", type=command.count, default=256, help="images per step and rank")
    computing.add_argument(
        "--workers",
        type=command.workers,
        default=min(4, os.cpu_count() or 1),
        help="threads per rank that read images; more than 4 are processes",
    )
    computing.add_argument("--precision", type=canonical, default="auto", help="auto, amp_bf16, amp or fp32")
    computing.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    computing.add_argument("--cache", metavar="DIR", help="keep image features here, and use those that are there")
    add_engine_flags(computing, engine_help="ray: images on all machines of a Ray cluster; needs a shared --cache")

    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="DIR", help="for results and plots (default: the run's results folder)")
    output.add_argument("--no-plots", "--no-pictures", action="store_true", help="numbers only")


def encoding_from(args: argparse.Namespace, world: World) -> Encoding:
    """How to compute, from the flags; sets up this process for it."""
    check_engine_flags(args)
    if world.device.type == "cpu":
        keep_freed_memory()
    cache = Path(args.cache) if args.cache else None
    if cache is not None:  # now, rather than after the first dataset
        cache.mkdir(parents=True, exist_ok=True)
    cluster = None
    if args.engine == "ray":
        if cache is None:
            raise UserError("--engine ray needs --cache DIR, a folder that all machines share")
        model = ModelSource(args.checkpoint, args.model, args.weights)
        cluster = FeatureCluster(engine_of(args, world.world_size), model, args.device)
    return Encoding(world, args.batch_size, args.workers, args.precision, cache, cluster=cluster)
