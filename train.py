"""Trains a model with ALIP: images, raw web texts and synthetic captions in rec shards → a run folder.

    python train.py --train-data data/demo/train --model scripts/demo/model.json --output runs/demo
    torchrun --nproc_per_node 8 train.py --train-data /data/yfcc15m/train --batch-size 512 --output runs/yfcc15m

See docs/training.md; every flag: python train.py --help.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alip import distributed
from alip.data.loader import Augmentation, create_loader
from alip.data.shards import load_manifest
from alip.distributed import World
from alip.errors import run_command
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model
from alip.model.precision import resolve
from alip.train import arguments, precision
from alip.train.evaluation import create_evaluations
from alip.train.optimizer import create_optimizer
from alip.train.parallel import parallelise
from alip.train.plan import create_plan
from alip.train.resume import create_identity
from alip.train.run_folder import open_run
from alip.train.schedule import create_schedule
from alip.train.state import create_state
from alip.train.step import TrainStep
from alip.train.trainer import Fit


def main() -> int:
    args = arguments.parse_arguments()
    world = distributed.start(args.device, args.dist_timeout)
    try:
        return train(args, world)
    finally:
        distributed.stop()


def train(args: argparse.Namespace, world: World) -> int:
    """One run, from its arguments to its exit status."""
    args.precision = resolve(args.precision, world.device)
    precision.set_up(world.device, args.precision, args.seed, args.deterministic, args.cpu_threads)

    manifest = load_manifest(args.train_data)
    model = create_model(args.model, **arguments.of_model(args)).to(world.device)
    precision.set_layout(model)
    loss = AdaptiveContrastiveLoss(**arguments.of_loss(args)).to(world.device)
    optimizer = create_optimizer(model, **arguments.of_optimizer(args))
    augmentation = Augmentation(**arguments.of_augmentation(args))
    loader = create_loader(
        manifest, args.batch_size, **arguments.of_loader(args, model), world=world, augmentation=augmentation
    )
    plan = create_plan(manifest.samples, world, **arguments.of_plan(args))
    schedule = create_schedule(args.lr_scheduler, args.lr, plan.total, args.warmup, args.cooldown, args.cycle_beta1)
    evaluations = create_evaluations(world=world, **arguments.of_evaluations(args))

    state = create_state(model, loss, optimizer, manifest, world, args.precision, args.ema, args.mismatch_column)
    identity = create_identity(manifest, model, world, **arguments.of_identity(args))
    run = open_run(
        state, identity, plan, world, folder=Path(args.output), settings=vars(args), **arguments.of_resume(args)
    )
    step = TrainStep(
        model,
        loss,
        optimizer,
        world.device,
        parallel_model=parallelise(model, world),
        precision=args.precision,
        scaler=state.scaler,
        moving_average=state.moving_average,
        grad_clip=args.grad_clip_norm,
        logit_scale_max=args.logit_scale_max,
    )
    return Fit(state, step, loader, schedule, plan, world, run, evaluations).run()


if __name__ == "__main__":
    run_command(main)
