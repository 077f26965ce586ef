"""Images and weights made to harm: a seeded few of what tests/soak_fuzz.py runs by the thousand."""

import random

import pytest

from alip.build import images
from tests.fuzz import Escaped, hostile_images, hostile_weights, run_case


@pytest.mark.parametrize("form", hostile_images.MAKERS)
def test_hostile_images(form, tmp_path):
    for seed in range(6):
        path = tmp_path / f"{seed}.{form}"
        path.write_bytes(hostile_images.MAKERS[form](random.Random(f"{form}/{seed}")))
        run_case(lambda path=path: hostile_images.read(path, hostile_images.ImagePolicy()), frozenset({"ok"}))


def test_hostile_weights(tmp_path):
    (target,) = hostile_weights.TARGETS
    for seed in range(6):
        (tmp_path / str(seed)).mkdir()
        run_case(target.make(random.Random(seed), tmp_path / str(seed)), target.allowed)


def test_a_build_that_keeps_odd_jpegs_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_is_kept", lambda image, data: image.format == "JPEG")
    with pytest.raises(Escaped):
        for seed in range(40):
            path = tmp_path / f"{seed}.jpg"
            path.write_bytes(hostile_images.MAKERS["jpg"](random.Random(seed)))
            run_case(lambda path=path: hostile_images.read(path, images.ImagePolicy()), frozenset({"ok"}))
