"""Ray as the engine of a build: pieces of work on all machines of a cluster. See units.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from alip.build.units import prepare_unit
from alip.errors import UserError

_AHEAD = 2  # pieces given to the cluster for each of its CPUs
_RETRIES = 2  # of a piece whose worker or machine was lost


class RayEngine:
    """Distributes pieces over the cluster at `address`: "auto" (the one that this machine belongs to, or that
    RAY_ADDRESS names), HOST:PORT, or "local" (this machine alone). Every machine needs the same Python packages and
    sees the same folders. The driver holds the list of pieces and their small results.

    A piece whose worker or machine is lost is done again elsewhere. One that kills its worker each time is done once
    more with every sample in a process of its own, so that the sample at fault is found.
    """

    def __init__(self, address: str = "auto"):
        try:
            import ray
        except ImportError:
            raise UserError("--engine ray needs Ray: pip install 'alip[cluster]'") from None
        self._ray = ray
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        options: dict[str, Any] = {"log_to_driver": False, "runtime_env": {"env_vars": environment}}
        if ray.is_initialized():
            return
        try:
            ray.init(None if address == "local" else address, logging_level="error", **options)
        except ConnectionError as error:
            raise UserError(
                f"--ray-address {address}: no Ray cluster answers ({' '.join(str(error).split())[:120]}); start one "
                "with `ray start --head`, or use --ray-address local"
            ) from None

    def run(self, function: Callable, job: Any, pieces: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """See units.Engine."""
        ray = self._ray
        shared = ray.put(job)
        task = ray.remote(function).options(num_cpus=1, max_retries=_RETRIES)
        waiting: dict[Any, tuple] = {}
        again: list[tuple] = []
        for piece in pieces:
            waiting[task.remote(shared, *piece)] = piece
            while len(waiting) >= self._capacity():
                yield from self._finished(waiting, again, function)
        while waiting:
            yield from self._finished(waiting, again, function)
        for piece in again:
            yield piece, self._outcome(task.remote(shared, *piece, careful=True))

    def _capacity(self) -> int:
        return _AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _finished(
        self, waiting: dict[Any, tuple], again: list[tuple], function: Callable
    ) -> Iterator[tuple[tuple, Any]]:
        (reference,), _ = self._ray.wait(list(waiting), num_returns=1)
        piece, result = waiting.pop(reference), self._outcome(reference)
        if isinstance(result, Lost) and function is prepare_unit:
            again.append(piece)
        else:
            yield piece, result

    def _outcome(self, reference: Any) -> Any:
        """The result, or the exception that the piece itself raised, or Lost."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause
            return cause if isinstance(cause, UserError) else RuntimeError(f"{type(cause).__name__}: {cause}")
        except errors.RayError as error:
            return Lost(f"its worker was lost {_RETRIES + 1} times ({type(error).__name__}; out of memory?)")

    def close(self) -> None:
        """Leaves the cluster."""
        self._ray.shutdown()


class Lost(Exception):
    """Workers or machines were lost with a piece, each time."""
