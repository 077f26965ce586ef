"""Several gloo ranks on this machine, for tests of what is distributed."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from alip.distributed import World


def on_ranks(count: int, function, *arguments) -> list:
    """Runs function(world, *arguments) on `count` gloo ranks; returns their results in rank order.

    function: a module's own, since it travels by name. The ranks are not forked from here: a child of a process with
    threads keeps every lock that another thread held at that moment (the resolver's, say), and waits for ever.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "alip.model", "alip.train.trainer"])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(count, context) as pool:
        store = str(Path(folder) / "store")
        worlds = [World(r, r, count) for r in range(count)]
        ranks = [pool.submit(_rank, world, store, dict(os.environ), function, arguments) for world in worlds]
        return [rank.result() for rank in ranks]


def _rank(world: World, store: str, environment: dict[str, str], function, arguments):
    os.environ.update(environment)  # the server that forks the ranks has that of the first test that used it
    torch.set_num_threads(1)
    place = {"store": dist.FileStore(store, world.world_size), "rank": world.rank, "world_size": world.world_size}
    # A rank that waits for one that failed gives up long before the test's own limit.
    dist.init_process_group("gloo", timeout=timedelta(seconds=60), **place)
    try:
        return function(world, *arguments)
    finally:
        dist.destroy_process_group()
