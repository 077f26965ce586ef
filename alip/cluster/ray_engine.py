"""Ray as the engine: pieces of work on all machines of a cluster. See pieces.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alip.cluster.pieces import Outcomes
from alip.errors import UserError

_AHEAD = 2  # pieces given to the cluster for each of its CPUs
_RETRIES = 2  # of a piece whose worker or machine was lost
_PATIENCE_S = 20.0  # without a free CPU or GPU, before a line reports it


def add_flags(group: Any, choices: Sequence[str] = ("local", "ray"), engine_help: str = "") -> None:
    """--engine (the first choice is the default) and --ray-address."""
    text = (engine_help or "ray: on all machines of a Ray cluster") + " (default: %(default)s)"
    group.add_argument("--engine", choices=choices, default=choices[0], help=text)
    text = "of the cluster; auto: the one of this machine; local: this machine alone (default: auto)"
    group.add_argument("--ray-address", default=argparse.SUPPRESS, metavar="HOST:PORT", help=text)


def check_flags(arguments: argparse.Namespace) -> None:
    """UserError for an address that nothing would use."""
    if "ray_address" in arguments and arguments.engine != "ray":
        raise UserError("--ray-address is of no use without --engine ray: give both, or leave it out")


def engine_of(arguments: argparse.Namespace, ranks: int = 1) -> RayEngine | None:
    """The engine that the flags name; None: this process. ranks: of the command. UserError under torchrun, for one GPU
    of several, and without Ray or a cluster."""
    if arguments.engine != "ray":
        return None
    if ranks > 1:
        raise UserError("--engine ray starts its workers itself: start the command without torchrun")
    if getattr(arguments, "device", "").startswith("cuda:"):
        raise UserError("--engine ray gives each worker its GPU: give --device cuda, or leave it out")
    return RayEngine(getattr(arguments, "ray_address", "auto"))


class RayEngine:
    """Distributes pieces over the cluster at `address`: "auto" (the one that this machine belongs to, or that
    RAY_ADDRESS names), HOST:PORT, or "local" (this machine alone). Every machine needs the same Python packages and
    sees the same folders. The driver holds the list of pieces and their small results.

    A piece whose worker or machine is lost is done again elsewhere.
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
        except (ConnectionError, ValueError, RuntimeError) as error:  # nobody there, no address, another version
            reason = " ".join(str(error).split())
            raise UserError(
                f"--ray-address {address}: no Ray cluster answers ({reason[:300]}); start one with "
                "`ray start --head`, or use --ray-address local"
            ) from None

    def run(
        self, function: Callable, job: Any, pieces: Iterable[tuple], last_try: dict[str, Any] | None = None
    ) -> Outcomes:
        """See pieces.Engine."""
        ray = self._ray
        shared = ray.put(job)
        task = ray.remote(function).options(num_cpus=1, max_retries=_RETRIES)
        waiting: dict[Any, tuple] = {}
        again: list[tuple] = []

        def finished() -> Iterator[tuple[tuple, Any]]:
            (reference,), _ = ray.wait(list(waiting), num_returns=1)
            piece, result = waiting.pop(reference), self._outcome(reference)
            if isinstance(result, Lost) and last_try is not None:
                again.append(piece)
            else:
                yield piece, result

        for piece in pieces:
            waiting[task.remote(shared, *piece)] = piece
            while len(waiting) >= _AHEAD * max(1, self._count("CPU")):
                yield from finished()
        while waiting:
            yield from finished()
        for piece in again:
            yield piece, self._outcome(task.remote(shared, *piece, **last_try))

    def run_workers(self, factory: Callable, job: Any, pieces: Sequence[tuple], device: str = "cpu") -> Outcomes:
        """See pieces.Engine."""
        gpus = self._count("GPU")
        if device.startswith("cuda") and not gpus:
            raise UserError(f"--device {device}: no machine of the Ray cluster has a GPU: leave it out")
        on_gpu = gpus > 0 and device != "cpu"
        count = min(gpus if on_gpu else max(1, self._count("CPU")), len(pieces))
        return _Workers(self, factory, job, on_gpu).run(pieces, count)

    def _count(self, what: str) -> int:
        return int(self._ray.cluster_resources().get(what, 0))

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

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Lost(Exception):
    """Workers or machines were lost with a piece, each time."""


class _Worker:
    """A process of the cluster; an actor. Its state is made by a method: Ray hides the errors of a constructor."""

    def open(self, factory: Callable, job: Any) -> None:
        import ray

        if gpus := ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            # The process sees its own GPU alone, as "cuda". Ray does this itself unless it is configured not to.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._work = factory(job)

    def do(self, piece: tuple) -> Any:
        return self._work(*piece)


class _Workers:
    """Actors with one piece each. One that is lost is replaced by another, which may be on another machine."""

    def __init__(self, engine: RayEngine, factory: Callable, job: Any, on_gpu: bool):
        self._engine, self._ray, self._factory = engine, engine._ray, factory
        self._what = "GPU" if on_gpu else "CPU"
        self._actor = self._ray.remote(_Worker).options(num_cpus=1, num_gpus=int(on_gpu))
        self._job = self._ray.put(job)
        self._opening: dict[Any, Any] = {}
        self._working: dict[Any, tuple[Any, tuple]] = {}
        self._lost = 0  # that died while they were made, one after the other

    def run(self, pieces: Sequence[tuple], count: int) -> Outcomes:
        """The outcomes. Without pieces no worker is made."""
        todo, attempts = deque(pieces), Counter()
        for _ in range(count):
            self._add()
        try:
            while todo or self._working:
                reference = self._next()
                outcome = self._engine._outcome(reference)
                if reference in self._opening:
                    actor = self._opened(self._opening.pop(reference), outcome)
                else:
                    actor, piece = self._working.pop(reference)
                    if isinstance(outcome, Lost):
                        actor = None
                        self._add()
                        attempts[piece] += 1
                        if attempts[piece] <= _RETRIES:
                            todo.appendleft(piece)
                            continue
                    yield piece, outcome
                if actor is None:
                    continue
                if todo:
                    piece = todo.popleft()
                    self._working[actor.do.remote(piece)] = (actor, piece)
                else:
                    self._ray.kill(actor)  # its CPU or GPU may be needed for another
        finally:
            for actor in [*self._opening.values(), *(actor for actor, _ in self._working.values())]:
                self._ray.kill(actor)

    def _add(self) -> None:
        actor = self._actor.remote()
        self._opening[actor.open.remote(self._factory, self._job)] = actor

    def _opened(self, actor: Any, outcome: Any) -> Any:
        """The worker, if it could be made; else None, and another one is on its way."""
        if isinstance(outcome, Lost):
            self._lost += 1
            if self._lost > _RETRIES:
                raise UserError("workers on the Ray cluster die while they start: is there enough memory for them?")
            self._add()
            return None
        if isinstance(outcome, UserError):
            raise outcome
        if isinstance(outcome, Exception):
            raise UserError(
                f"no worker can be made on the Ray cluster: {outcome}; try the command on one of its machines"
            )
        self._lost = 0
        return actor

    def _next(self) -> Any:
        """The next call that has ended. One line while none can begin: other jobs may have all CPUs or GPUs."""
        calls = [*self._working, *self._opening]
        timeout = None if self._working else _PATIENCE_S
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=timeout)
        if not ready:
            print(f"waiting for a free {self._what} of the Ray cluster", file=sys.stderr, flush=True)
            ready, _ = self._ray.wait(calls, num_returns=1)
        return ready[0]
