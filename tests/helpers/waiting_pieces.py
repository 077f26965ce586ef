"""Pieces as Ray's workers do them, on a node or in a process that is to be killed in the middle of one."""

import os
import signal
import time

from alip.build import unit_shuffle, units
from alip.errors import UserError

LOG = "pieces.log"


def prepare_unit(job, unit, cut=None, careful=False):
    """Logs the piece and its node beside the dataset's folder; on the doomed node it does not end."""
    import ray

    log = job.folder.parent / LOG
    node = ray.get_runtime_context().get_node_id()
    with open(log, "a") as file:
        file.write(f"{unit} {node}\n")
    if node == log.with_suffix(".doomed").read_text():
        time.sleep(300)
    return units.prepare_unit(job, unit, cut, careful)


def spill_unit(job, index, start):
    """Logs the piece beside the dataset's folder; the first one kills its process."""
    log = job.units.folder.parent / LOG
    is_first = not log.exists()
    with open(log, "a") as file:
        file.write(f"{index}\n")
    if is_first:
        os.kill(os.getpid(), signal.SIGKILL)
    return unit_shuffle.spill_unit(job, index, start)


# Logs its process and its GPUs when it is made and at each batch. If the log has a file .doomed beside it, one of two
# is killed at its first batch, once both are made.
CAPTIONER = """
import contextlib, os, signal, time
from pathlib import Path

class Sizes:
    def __init__(self, log):
        self.log = Path(log)
        self.write("made")

    def write(self, what):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}:{os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}:{what}\\n")

    def caption(self, batch):
        self.write(len(batch))
        doomed = self.log.with_name(self.log.name + ".doomed")
        while doomed.exists() and self.log.read_text().count("made") < 2:
            time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):  # one process dies, whoever comes first
            doomed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return [f"{image.width} by {image.height}" for image in batch]

def create_captioner(device, options):
    return Sizes(options["log"])
"""


def cannot_be_made(job):
    """A factory of workers that finds no model."""
    raise UserError("no such model")


def is_broken(job):
    """A factory of workers with a mistake in its code."""
    raise ValueError("no number")
