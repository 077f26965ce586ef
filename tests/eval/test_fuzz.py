"""A seeded few hundred of the mutated inputs; thousands run in tests/soak_fuzz.py."""

import random

import pytest

from tests.fuzz import benchmarks, evaluation, run_case

CASES = {"dataset archive": 12, "plotted text": 8}  # the slow ones; 60 of each other target


@pytest.mark.parametrize("target", [*evaluation.TARGETS, *benchmarks.TARGETS], ids=lambda target: target.name)
def test_no_mutation_escapes(target, tmp_path):
    outcomes = set()
    for number in range(CASES.get(target.name, 60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        case = target.make(random.Random(f"{target.name}/{number}"), folder)
        outcomes.add(run_case(case, target.allowed))
    assert "ok" in outcomes  # the mutations leave something to read, too
