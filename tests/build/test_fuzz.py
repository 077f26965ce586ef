"""A seeded few of the cases that tests/soak_fuzz.py runs by the thousand, and proof that they can fail."""

import random

import pytest

from alip.build import archives, prepare, table_rows
from alip.build.images import ImageError, StoredImage
from tests.fuzz import Escaped, binary_containers, containers, image_metadata, inputs, run_case

CASES = 12


@pytest.mark.parametrize("target", inputs.TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("seed", range(CASES))
def test_mutated_inputs(target, seed, tmp_path):
    run_case(target.make(random.Random(f"{target.name}/{seed}"), tmp_path), target.allowed)


@pytest.mark.parametrize(
    "target", [*containers.TARGETS, *binary_containers.TARGETS, *image_metadata.TARGETS], ids=lambda target: target.name
)
def test_rare_rules_of_containers_and_images(target, tmp_path):
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        run_case(target.make(random.Random(f"{target.name}/{seed}"), tmp_path / str(seed)), target.allowed)


def _first_fault(name: str, folder, most: int = 150) -> str | None:
    """What the first of `most` cases that fails reports."""
    target = next(target for target in inputs.TARGETS if target.name == name)
    for seed in range(most):
        case = folder / str(seed)
        case.mkdir()
        try:
            run_case(target.make(random.Random(seed), case), target.allowed)
        except Escaped as error:
            return str(error)
    return None


def test_a_tar_reader_that_stops_at_damage_is_found(tmp_path, monkeypatch):
    def stopping(self, at, what="", damage=None):
        return
        yield

    monkeypatch.setattr(archives.TarMembers, "_after_damage", stopping)
    assert "lost in silence" in _first_fault("tar", tmp_path)


def test_a_row_that_swallows_others_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(table_rows._CsvRows, "_second_try", lambda self, fault, quoting: (None, fault))
    assert "is lost to the damage" in _first_fault("table", tmp_path)


def test_an_image_that_training_would_refuse_is_found(tmp_path, monkeypatch):
    def lenient(data, policy, name=""):
        if not data.startswith(b"\xff\xd8"):
            raise ImageError("broken", "")
        return StoredImage(data, 90, 60, True)

    monkeypatch.setattr(inputs, "to_jpeg", lenient)
    assert _first_fault("image", tmp_path)


def test_an_error_that_ends_a_build_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "to_jpeg", lambda *_: {}["anything"])
    monkeypatch.setattr(prepare, "_prepared", prepare._record)
    assert "KeyError" in _first_fault("build", tmp_path, 3)
