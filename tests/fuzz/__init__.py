"""Seeded fuzzing: each module here lists `TARGETS`, mutated inputs of one kind and what reads them.

    for target in models.TARGETS:
        case = target.make(random.Random(seed), folder)  # writes a mutated input into an empty folder
        outcome = run_case(case, target.allowed)  # "ok", "refused", or an `Escaped` failure with its traceback

`tests/soak_fuzz.py` runs thousands of them with limits on time and memory; a few hundred run with the tests.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alip.errors import LONGEST, UserError

OK, REFUSED = "ok", "refused"


@dataclass(frozen=True)
class Target:
    """One type of input.

    make: writes one mutated input, sampled from the generator, into an empty folder, and returns a callable that reads
        it as the command does. allowed: the outcomes that are right for every mutation: OK (it was read), REFUSED (one
        `UserError`). Silent differences are for `make` to find: its callable raises AssertionError.
    """

    name: str
    make: Callable[[random.Random, Path], Callable[[], object]]
    allowed: frozenset[str] = frozenset((OK, REFUSED))


class Escaped(AssertionError):
    """A case ended as none may: with a traceback, a message of several lines, or an outcome that is not allowed."""


def run_case(case: Callable[[], object], allowed: frozenset[str]) -> str:
    """Runs one case in this process and returns its outcome; raises Escaped, with what happened, for a fault."""
    try:
        case()
        outcome = OK
    except UserError as error:
        outcome, line = REFUSED, str(error)
        if "\n" in line.strip() or len(line) > LONGEST:
            raise Escaped(f"message of {len(line)} characters: {line[:LONGEST]!r}") from error
    except Exception as error:
        raise Escaped("".join(traceback.format_exception(error, limit=-8))) from error
    if outcome not in allowed:
        raise Escaped(f"outcome {outcome!r}, allowed: {', '.join(sorted(allowed))}")
    return outcome
