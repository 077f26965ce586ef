"""Work cut into pieces that any process on any machine can do, and what an engine such as Ray has to offer for it.

A piece is a tuple of plain values. It is done by calling a function with it, must give the same whoever does it and
however often, and publishes what it writes only when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from alip.errors import UserError

Outcomes = Iterator[tuple[tuple, Any]]  # (piece, its result, or the exception that ended its last attempt)


class Engine(Protocol):
    """What distributes pieces. Both methods give the outcomes as they come, in any order."""

    def run(
        self, function: Callable, job: Any, pieces: Iterable[tuple], last_try: dict[str, Any] | None = None
    ) -> Outcomes:
        """Calls function(job, *piece) for every piece, anywhere. last_try: arguments for one more attempt of a piece
        that has killed its worker each time."""

    def run_workers(self, factory: Callable, job: Any, pieces: Sequence[tuple], device: str = "cpu") -> Outcomes:
        """The same with workers that hold what is slow to make: factory(job) makes one, and worker(*piece) does a
        piece. device: "cpu", a worker for each CPU; "cuda", for each GPU; "auto": "cuda" where there are GPUs.
        UserError if a worker cannot be made."""


def collect(
    outcomes: Outcomes,
    keys: dict[tuple, Hashable],
    done: dict[Hashable, Any],
    sizes: dict[Hashable, float],
    *,
    what: str,
    name: Callable[[Any], str],
    quiet: bool,
) -> dict[Hashable, Any]:
    """The results of all pieces by key, with a progress bar over all machines.

    keys: of the pieces to do. done: results that are there already, by key. sizes: of all pieces, for the bar. what:
    the pieces' name, in the plural. name(key): what a person calls one. UserError names the first in the order of the
    keys that failed; the others are done then.
    """
    results, failed = dict(done), {}
    form = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
    with tqdm(
        total=sum(sizes.values()), initial=sum(sizes[key] for key in done), desc=what, bar_format=form, disable=quiet
    ) as bar:
        for piece, result in outcomes:
            key = keys[piece]
            if isinstance(result, Exception):
                failed[key] = result
            else:
                results[key] = result
            bar.set_postfix_str(f" {len(results):,} of {len(sizes):,}, {len(failed)} failed", refresh=False)
            bar.update(sizes[key])
    if failed:
        first = min(failed)
        raise UserError(
            f"{len(failed)} of {len(sizes)} pieces of work failed, the first: {name(first)}: {failed[first]}; fix that "
            "and run the same command again, the others are done"
        )
    return results
