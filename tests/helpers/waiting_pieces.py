"""The first pass of a build as Ray's workers do it, on a node that is to be killed in the middle of a piece."""

import time

from alip.build import units

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
