"""Trains a model with ALIP: images, raw web texts and synthetic captions in rec shards → a run folder.

    python train.py --train-data data/demo/train --model scripts/demo/model.json --output runs/demo
    torchrun --nproc_per_node 8 train.py --train-data /data/yfcc15m/train --batch-size 512 --output runs/yfcc15m

See docs/training.md; every flag: python train.py --help.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from alip import distributed
from alip.data.loader import Augmentation, check_tokens, create_loader, open_data
from alip.distributed import World
from alip.errors import run_command
from alip.folder_lock import lock_folder
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model, hub
from alip.model.compilation import resolve_compile
from alip.model.precision import resolve
from alip.model.text_format import read_text_format
from alip.train.arguments import fingerprint_settings, options, parse_arguments
from alip.train.batch_size import CudaMemory, DryStep, Found, find_largest, resolve_batch
from alip.train.check import check_free, check_output, check_start, describe, show
from alip.train.evaluation import create_evaluations
from alip.train.flops import ModelFlops
from alip.train.optimizer import create_optimizer
from alip.train.parallel import parallelise, synchronise_batch_norm
from alip.train.plan import create_plan
from alip.train.resume import create_fingerprint
from alip.train.run_folder import open_run
from alip.train.schedule import create_schedule
from alip.train.setup import set_layout, set_up
from alip.train.sharding import shard
from alip.train.state import create_state
from alip.train.step import TrainStep
from alip.train.trainer import Trainer


def main() -> int:
    args = parse_arguments()
    if args.debug:
        logging.basicConfig(level=logging.DEBUG)
    if args.cache_dir:
        hub.use_cache(args.cache_dir)
    with distributed.joined(args.device, args.dist_timeout) as world:
        return train(args, world)


def train(args: argparse.Namespace, world: World) -> int:
    """One run, from its arguments to its exit status."""
    args.precision = resolve(args.precision, world.device)
    args.torchcompile = resolve_compile(args.torchcompile, world.device)
    args.batch_size, args.accum_freq = _choose_batch(args, world)
    set_up(world.device, args.precision, args.seed, args.deterministic, args.cpu_threads)

    data = open_data(**options(args, "data"))
    check_tokens(data, read_text_format(args.model))
    model = create_model(args.model, **options(args, "model"))
    if args.use_bn_sync:
        synchronise_batch_norm(model, world)
    if args.fsdp:
        shard(model, world, args.fsdp, opt=args.opt, precision=args.precision)
    else:
        set_layout(model.to(world.device))
    # The step looks for values that are not finite, on the device; drop_last makes every rank's batch equal.
    loss = AdaptiveContrastiveLoss(**options(args, "loss"), check_finite=False, even_batches=True).to(world.device)
    optimizer = create_optimizer(model, **options(args, "optimizer"))
    augmentation = Augmentation(**options(args, "augmentation"))
    loader = create_loader(
        data, **options(args, "loader"), **model.input_format, world=world, augmentation=augmentation
    )
    plan = create_plan(data.samples, world, **options(args, "plan"))
    schedule = create_schedule(total=plan.total, **options(args, "schedule"))
    evaluations = create_evaluations(world=world, **options(args, "evaluations"))

    state = create_state(model, loss, optimizer, data, world, **options(args, "state"))
    fingerprint = create_fingerprint(data, model, world, **fingerprint_settings(args))
    if args.check or args.debug:
        parts = (args.model, model, data, optimizer, schedule, plan, evaluations, world)
        show(describe(*parts, args.precision, args.torchcompile), world)
    if args.check:
        check_free(Path(args.output), world)
        show(check_output(Path(args.output), model, state.ema is not None), world)
        show(check_start(Path(args.output), loader, state, fingerprint, world, **options(args, "run")), world)
        return 0
    with lock_folder(Path(args.output), world):
        run = open_run(
            state, fingerprint, plan, world, folder=Path(args.output), settings=vars(args), **options(args, "run")
        )
        train_step = TrainStep(
            model,
            loss,
            optimizer,
            world.device,
            parallel_model=parallelise(model, world),
            scaler=state.scaler,
            ema=state.ema,
            **options(args, "step"),
        )
        flops = ModelFlops(model)
        return Trainer(state, train_step, loader, schedule, plan, world, run, evaluations, flops).train()


def _choose_batch(args: argparse.Namespace, world: World) -> tuple[int, int]:
    """Samples of a micro-batch and micro-batches of a step, on each rank: as given, or by trying what fits."""
    size = (args.batch_size, args.accum_freq, args.global_batch_size)

    def find(samples: int) -> Found:
        set_up(world.device, args.precision, args.seed, args.deterministic, args.cpu_threads)
        memory = CudaMemory(world.device)
        step = {"samples": samples, "precision": args.precision, "ema": args.ema > 0, "device": world.device}
        step["margin"] = memory.margin
        dry = DryStep(args.model, options(args, "model"), options(args, "optimizer"), **step)
        return find_largest(samples, dry, memory)

    return resolve_batch(*size, world, find, lambda text: show([text], world))


if __name__ == "__main__":
    run_command(main)
