"""torchrun that checks the training command first, and never restarts a user's mistake.

    python -m alip.train.launch --standalone --nproc-per-node 8 --max-restarts 3 train.py --train-data …

The flags before the script are torchrun's. Ranks that crash or are killed are restarted up to --max-restarts times, as
torchrun does it. A `UserError` of a rank ends the job instead: its line is the last one printed, and the status is 2.
With `--check-only` nothing is started. Made for train.py; other scripts are started without a check.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import torch.distributed.launcher.api as launcher
import torch.distributed.run as torchrun
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from alip.distributed import LAUNCHER
from alip.errors import MISTAKES, UserError, run_command
from alip.train.arguments import parse_arguments
from alip.train.preflight import check_command

_NOISY = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")


class _Mistake(Exception):
    """A rank ended with a user's mistake."""


class _Agent(LocalElasticAgent):
    """torchrun's supervisor of one machine's ranks, which does not restart a mistake."""

    def _restart_workers(self, worker_group):
        if _read_mistake() is not None:
            self._stop_workers(worker_group)
            raise _Mistake
        super()._restart_workers(worker_group)


def main() -> int:
    """Checks the command of `train.py` once, then starts the ranks as torchrun does; returns the exit status."""
    parser = torchrun.get_args_parser()
    parser.error = _refuse
    parser.add_argument("--check-only", action="store_true", help="check the command, and start nothing")
    launch = parser.parse_args()
    _check_launch(launch)
    ranks = _world_size(launch)
    if Path(launch.training_script).name == "train.py":
        check_command(parse_arguments(launch.training_script_args), ranks)
    if launch.check_only:
        print("the command is sound; nothing was started")
        return 0
    return _run(launch)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message} (all flags: python -m alip.train.launch --help)")


def _check_launch(launch) -> None:
    """UserError for values that torchrun would answer with a traceback."""
    for flag, value in (("--max-restarts", launch.max_restarts), ("--shutdown-timeout", launch.shutdown_timeout)):
        if value is not None and value < 0:
            raise UserError(f"{flag} {value}: give a number from 0 on")
    try:
        parse_rendezvous_endpoint(launch.rdzv_endpoint, default_port=29400)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--rdzv-endpoint {launch.rdzv_endpoint}: write HOST:PORT ({reason})") from error


def _world_size(launch) -> int:
    """How many ranks there will be at least; UserError for numbers that are none."""
    try:
        nodes, most = torchrun.parse_min_max_nnodes(launch.nnodes)
        local = torchrun.determine_local_world_size(launch.nproc_per_node)
    except (ValueError, RuntimeError) as error:  # RuntimeError: three numbers of machines
        given = f"--nnodes {launch.nnodes} --nproc-per-node {launch.nproc_per_node}"
        raise UserError(f"{given}: {' '.join(str(error).split())[:120]}; give numbers") from error
    if not 1 <= nodes <= most or local < 1:
        raise UserError(f"--nnodes {launch.nnodes} --nproc-per-node {launch.nproc_per_node}: give numbers from 1 on")
    if launch.node_rank >= most:
        raise UserError(f"--node-rank {launch.node_rank}: the {most} machines are numbered from 0 to {most - 1}")
    return nodes * local


def _run(launch) -> int:
    """Runs the job; its exit status."""
    launcher.LocalElasticAgent = _Agent  # where torchrun takes its supervisor from
    if torchrun.determine_local_world_size(launch.nproc_per_node) > 1:
        # As torchrun does, which warns of it in five lines; each rank then chooses its number of threads itself.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Else a restart gets the first start's store, with its dead addresses, and fails.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    for name in _NOISY:
        logging.getLogger(name).addFilter(lambda record: _read_mistake() is None)
    with tempfile.TemporaryDirectory(prefix="alip-mistakes-") as folder:
        os.environ |= {MISTAKES: folder, LAUNCHER: str(os.getpid())}
        status = 0
        try:
            torchrun.run(launch)
        except _Mistake:
            status = 2
        except ChildFailedError as error:
            status = 1
            if _read_mistake() is None:
                print(error, file=sys.stderr)
        except SignalException as stopped:
            status = 128 + stopped.sigval
            print(f"stopped by {signal.Signals(stopped.sigval).name}", file=sys.stderr)
        except RendezvousClosedError:
            status = 1
            print("ended, because another machine of this job has; see its own message", file=sys.stderr)
        line = _read_mistake()
        del os.environ[MISTAKES], os.environ[LAUNCHER]
    if line is not None:
        print(line, file=sys.stderr)
        return 2
    return status


def _read_mistake() -> str | None:
    """The line of the first rank that left one."""
    folder = os.environ.get(MISTAKES)
    found = sorted(Path(folder).glob("rank-*")) if folder else []
    return found[0].read_text(encoding="utf-8") if found else None


if __name__ == "__main__":
    run_command(main)
