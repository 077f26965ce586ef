"""A seeded few of the shards' cases that tests/soak_fuzz.py runs by the thousand, and proof that they can fail."""

import random

import pytest

from alip.data import sample_reader
from tests.fuzz import Escaped, run_case, shards


@pytest.mark.parametrize("target", shards.TARGETS, ids=lambda target: target.name)
def test_no_case_escapes(target, tmp_path):
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run_case(target.make(random.Random(f"{target.name}/{seed}"), folder), target.allowed)


def test_they_find_a_loader_that_checks_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_reader, "record_fault", lambda *arguments: None)
    monkeypatch.setattr(sample_reader.Records, "_are_sound", lambda self, buffer, found, *rest: found["usual"])
    (target,) = (one for one in shards.TARGETS if one.name == "shards: rec")
    escaped = 0
    for seed in range(25):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            run_case(target.make(random.Random(seed), folder), target.allowed)
        except Escaped as error:
            escaped += "samples that were never written" in str(error)
    assert escaped > 3
