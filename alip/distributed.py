"""Ranks, devices and a few collectives: the one place that reads the launcher's environment (torchrun, SLURM)."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from alip.errors import UserError, end_at_once

LAUNCHER = "ALIP_LAUNCHER"  # environment variable: the process id of alip.train.launch, for the ranks that it starts
_CPU = torch.device("cpu")
_PR_SET_PDEATHSIG = 1  # prctl(2)


def note(text: str) -> None:
    """Prints a line that begins with "note:", on the first rank only; also before there is a process group."""
    if launcher_number(("RANK", "SLURM_PROCID"), 0) == 0:
        print(f"note: {text}")


@dataclass(frozen=True)
class World:
    """This process's place among the ranks.

    rank, world_size: global; local_rank: on this machine. device: where this rank's model and batches are.
    timeout_minutes: of collectives; for further process groups.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = _CPU
    timeout_minutes: float = 10.0

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes files."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """True when there is more than one rank (a process group exists then)."""
        return self.world_size > 1


def start(device: str = "auto", timeout_minutes: float = 10.0) -> World:
    """Joins the process group that torchrun (or SLURM's variables) describes; alone, starts nothing.

    device: "auto" (GPU if there is one), "cpu", "cuda" or "cuda:K". NCCL on GPU, gloo on CPU.
    timeout_minutes: after this long in a collective a missing rank brings the job down instead of hanging it.
    """
    _end_with_launcher()
    rank, local_rank, world_size = 0, 0, 1
    if "MASTER_ADDR" in os.environ:  # without: an interactive SLURM shell, or no launcher: a process by itself
        world_size = launcher_number(("WORLD_SIZE", "SLURM_NTASKS"), 1, least=1)
        rank = launcher_number(("RANK", "SLURM_PROCID"), 0, most=world_size - 1)
        local_rank = launcher_number(("LOCAL_RANK", "SLURM_LOCALID"), 0, most=world_size - 1)
        launcher_number(("MASTER_PORT",), 29500, most=65535)

    place = pick_device(device, local_rank)
    if world_size > 1 and not dist.is_initialized():
        options = {"rank": rank, "world_size": world_size, "timeout": timedelta(minutes=timeout_minutes)}
        if place.type == "cuda":
            # With its device a barrier need not guess one, and ranks that cannot reach one another end here.
            dist.init_process_group("nccl", device_id=place, **options)
        else:
            dist.init_process_group("gloo", **options)
    return World(rank, local_rank, world_size, place, timeout_minutes)


def launcher_number(names: tuple[str, ...], default: int, least: int = 0, most: int = 2**31 - 1) -> int:
    """A whole number from the first of these environment variables that is set; UserError for anything else in it: a
    rank beyond the number of ranks would be waited for until the timeout."""
    name = next((name for name in names if name in os.environ), None)
    text = str(default) if name is None else os.environ[name]
    if not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise UserError(
            f"the environment variable {name} is {text[:40]!r} where a number from {least} to {most} belongs: correct "
            "or unset it"
        )
    return int(text)


def _end_with_launcher() -> None:
    """Has the kernel end this rank (SIGTERM) when its launcher is killed; it would wait for that for minutes. Linux."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError:  # killed before
        raise SystemExit("the launcher of this rank is gone") from None


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of "auto" (a GPU if there is one), "cpu", "cuda" (the local rank's GPU) or "cuda:K", made current.

    A launcher may show each process its own GPU only, which is then number 0 whatever the local rank. Raises UserError
    for another name and for a GPU that is not there.
    """
    device = check_device(name)
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def check_device(name: str) -> torch.device:
    """The device that `pick_device` starts from, without touching it; UserError if there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: choose auto, cpu, cuda or cuda:K")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}, but no GPU can be used here: choose --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there is no GPU {device.index}, only {torch.cuda.device_count()} in all")
    return device


def stop() -> None:
    """Leaves the process group, if there is one. NCCL waits here for all ranks to do so."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(device: str = "auto", timeout_minutes: float = 10.0) -> Iterator[World]:
    """The process group of `start` for one command, which leaves it at its end.

    A rank that fails does not leave it: NCCL would have it wait for the others, who wait for it, and its message would
    not be seen. `run_command` prints that and ends the process as it stands; the launcher ends the other ranks.
    """
    world = start(device, timeout_minutes)
    end_at_once(world.is_distributed)
    yield world
    stop()
    end_at_once(False)


def barrier(world: World) -> None:
    """Waits for all ranks."""
    if world.is_distributed:
        dist.barrier()


def gather_objects(value: Any, world: World) -> list[Any]:
    """One small picklable value per rank, in rank order, on every rank."""
    if not world.is_distributed:
        return [value]
    values: list[Any] = [None] * world.world_size
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any, world: World) -> Any:
    """Rank 0's small picklable value, on every rank."""
    if not world.is_distributed:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def ranks_of_a_machine(world: World) -> int:
    """How many ranks each machine has: by torchrun's variable, else by the machines' names. All ranks call it.

    UserError where machines have different numbers of them, or not consecutive ones.
    """
    name = "LOCAL_WORLD_SIZE"
    own = launcher_number((name,), 1, least=1) if name in os.environ else socket.gethostname()
    found = gather_objects(own, world)
    runs = [(machine, len(list(ranks))) for machine, ranks in itertools.groupby(found)]
    if isinstance(own, int):
        counts, sound = {*found}, world.world_size % own == 0
    else:
        counts, sound = {count for _, count in runs}, len(runs) == len(set(found))
    if len(counts) > 1 or not sound:
        listed = ", ".join(map(str, found))
        raise UserError(
            f"--fsdp node needs as many ranks on each machine, one machine's after another's, not: {listed}"
        )
    return counts.pop()


@contextlib.contextmanager
def work_of_rank_0(world: World) -> Iterator[Callable[[Any], Any]]:
    """For what rank 0 does alone: gives a `broadcast_object` in which the others wait for it, however long it takes.
    All ranks enter it, before the work."""
    if not world.is_distributed:
        yield lambda value: value
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))

    def broadcast(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=group, device=_CPU)
        return box[0]

    yield broadcast
    dist.destroy_process_group(group)


def share(count: int, world: World) -> range:
    """The part of `count` items that this rank handles: contiguous, and no two ranks' parts differ by more than one."""
    start_at = count * world.rank // world.world_size
    return range(start_at, count * (world.rank + 1) // world.world_size)
