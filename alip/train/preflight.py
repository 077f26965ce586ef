"""A training command checked before any rank starts. (`train.py --check` does more, as one of the ranks.)"""

from __future__ import annotations

import argparse
from pathlib import Path

from alip.data.loader import check_tokens, open_data
from alip.distributed import World, check_device
from alip.errors import UserError
from alip.eval.gates.labels import read_mismatch_labels
from alip.loss import AdaptiveContrastiveLoss
from alip.model import create_model, hub
from alip.model.text_format import read_text_format
from alip.train.arguments import fingerprint_settings, options
from alip.train.batch_size import planned_batch
from alip.train.check import check_output
from alip.train.checkpoints import CheckpointFolder
from alip.train.evaluation import create_evaluations
from alip.train.meter import Meter
from alip.train.optimizer import create_optimizer
from alip.train.plan import create_plan
from alip.train.resume import check_fingerprint, create_fingerprint, find_candidates, find_start
from alip.train.state import TrainState


def check_command(args: argparse.Namespace, world_size: int = 1) -> None:
    """Opens data, model, evaluations and the checkpoint that `world_size` ranks of train.py would, on the CPU.

    UserError for a mistake. Changes nothing: not the run folder, and no GPU is touched.
    """
    if args.cache_dir:
        hub.use_cache(args.cache_dir)
    device = check_device(args.device)
    folder = Path(args.output)
    checkpoints = CheckpointFolder(folder / "checkpoints", warn=lambda _: None)  # the ranks will report it
    kind, found = find_candidates(args.resume, checkpoints)
    if kind == "error":
        raise UserError(found)
    data = open_data(**options(args, "data"))
    world = World(world_size=world_size)
    batch = (args.batch_size, args.accum_freq, args.global_batch_size)
    args = argparse.Namespace(**vars(args))
    args.batch_size, args.accum_freq = planned_batch(*batch, World(world_size=world_size, device=device))
    create_plan(data.samples, world, **options(args, "plan"))
    check_tokens(data, read_text_format(args.model))
    model = create_model(args.model, **{**options(args, "model"), "compile": False})
    check_output(folder, model, args.ema > 0)
    optimizer = create_optimizer(model, **options(args, "optimizer"))
    create_evaluations(world=World(), **options(args, "evaluations"))
    if args.mismatch_column:
        read_mismatch_labels(data, args.mismatch_column)
    fingerprint = create_fingerprint(data, model, world, **fingerprint_settings(args))
    saved = find_start(args.resume, checkpoints, World(), model.state_dict(), fingerprint)
    if saved is not None:
        check_fingerprint(saved["fingerprint"], fingerprint, args.resume_force)
        if args.resume_force:  # what differs may be more than settings: the model, the optimizer, what is trained
            loss = AdaptiveContrastiveLoss(**options(args, "loss"))
            TrainState(model, loss, optimizer, Meter(World().device)).restore(saved, world, args.seed)
