"""A training command checked before any rank starts. (`train.py --check` does more, as one of the ranks.)"""

from __future__ import annotations

import argparse
from pathlib import Path

from alip.data.loader import check_tokens, open_data
from alip.distributed import World, check_device
from alip.errors import UserError
from alip.model import create_model, hub
from alip.model.text_format import read_text_format
from alip.train.arguments import options
from alip.train.check import check_output
from alip.train.checkpoints import CheckpointFolder
from alip.train.evaluation import create_evaluations
from alip.train.optimizer import create_optimizer
from alip.train.plan import create_plan
from alip.train.resume import find_candidates


def check_command(args: argparse.Namespace, world_size: int = 1) -> None:
    """Opens data, model and evaluations as `world_size` ranks of train.py would, on the CPU; UserError for a mistake.

    Changes nothing: not the run folder, and no GPU is touched.
    """
    if args.cache_dir:
        hub.use_cache(args.cache_dir)
    check_device(args.device)
    folder = Path(args.output)
    kind, found = find_candidates(args.resume, CheckpointFolder(folder / "checkpoints"))
    if kind == "error":
        raise UserError(found)
    data = open_data(**options(args, "data"))
    create_plan(data.samples, World(world_size=world_size), **options(args, "plan"))
    check_tokens(data, read_text_format(args.model))
    model = create_model(args.model, **options(args, "model"))
    check_output(folder, model)
    create_optimizer(model, **options(args, "optimizer"))
    create_evaluations(world=World(), **options(args, "evaluations"))
