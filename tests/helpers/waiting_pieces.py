"""Pieces as Ray's workers do them, on a node or in a process that is to be killed in the middle of one."""

import time

from alip.build import units
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


# Kills its own process at the third batch of a log that has a file .doomed beside it.
CAPTIONER = """
import os, signal
from pathlib import Path

class Sizes:
    def __init__(self, log):
        self.log = Path(log)

    def caption(self, batch):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}:{len(batch)}\\n")
        doomed = self.log.with_name(self.log.name + ".doomed")
        if doomed.exists() and len(self.log.read_text().split()) == 3:
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
