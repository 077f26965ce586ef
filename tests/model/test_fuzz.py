"""A few of the fuzzed configurations and weights files; thousands more: tests/soak_fuzz.py --only model:."""

import random

import pytest

from tests import fuzz
from tests.fuzz.models import TARGETS


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name.removeprefix("model: "))
def test_every_fault_is_one_line(target, tmp_path):
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        outcome = fuzz.run_case(target.make(random.Random(f"{target.name}/{seed}"), folder), target.allowed)
        assert outcome in (fuzz.OK, fuzz.REFUSED)
