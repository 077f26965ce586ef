"""The orders of an epoch: permutations, pure functions of (seed, epoch), readable from any position."""

import hashlib

import numpy as np
import pytest

from alip.data.order import BLOCK, WINDOW, EpochOrder, FeistelOrder, Permutation, ShardOrder, create_order

SIZES = [1, 63, 64, 65, 1000, BLOCK * WINDOW, BLOCK * WINDOW + 1, 3 * BLOCK * WINDOW - 7, 50_000]


def starts_of(samples: int) -> np.ndarray:
    """Shards of different sizes."""
    sizes = []
    while sum(sizes) < samples:
        sizes.append(min(samples - sum(sizes), 900 + 37 * (len(sizes) % 5)))
    return np.cumsum([0, *sizes])


@pytest.mark.parametrize("kind", ["blocks", "feistel", "shards"])
@pytest.mark.parametrize("samples", SIZES)
def test_every_sample_once_and_from_any_position(kind, samples):
    def order(seed=3, epoch=1, shuffle=True):
        return create_order(kind, starts_of(samples), seed, epoch, shuffle, 3)

    whole = order().slice(0, samples)
    assert sorted(whole.tolist()) == list(range(samples))
    for a, b in ((0, 1), (samples // 3, samples // 3 + 20_000), (samples - 1, samples + 5), (samples, samples + 1)):
        assert (order().slice(a, b) == whole[a:b]).all()
    assert (order(shuffle=False).slice(0, samples) == np.arange(samples)).all()
    if samples > 64:
        assert (whole != order(seed=4).slice(0, samples)).any()
        if kind != "shards" or samples > 1000:
            assert (whole != order(epoch=2).slice(0, samples)).any()


def test_the_order_of_earlier_versions_is_kept():
    digest = hashlib.sha256(EpochOrder(100_000, 7, 3).slice(0, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest == "cf655e82b39e7160975727dce00f7dad7de67a2417afe4616c2e6d10c5595430"
    digest = hashlib.sha256(FeistelOrder(100_000, 7, 3).slice(0, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest == "0279b14a2dab5394998e0a0f1eb54519440c2c6b85df9544b6b3bf450a00c58f"
    order = ShardOrder(starts_of(100_000), 7, 3)
    digest = hashlib.sha256(order.slice(0, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest == "d68cc0a1bcd8e2d06f9722fd1b7f4f3927085c6558c2050e3a9a3103d27e3f28"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 1000, 4096, 4097])
def test_a_permutation_and_its_inverse(count):
    permutation = Permutation(count, 1, 2)
    images = permutation(np.arange(count))
    assert sorted(images.tolist()) == list(range(count))
    assert [permutation.inverse(int(image)) for image in images[:50]] == list(range(count))[:50]


def test_a_permutation_is_random():
    """Over many seeds each number is equally often first; neighbours do not stay together."""
    first = np.bincount([int(Permutation(10, seed, 0)(np.zeros(1))[0]) for seed in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9, "chi squared, 9 degrees of freedom, p = 0.001"
    images = Permutation(10_000, 5, 5)(np.arange(10_000))
    assert np.mean(np.abs(np.diff(images)) == 1) < 0.002
    assert abs(np.corrcoef(images, np.arange(10_000))[0, 1]) < 0.04


def test_a_window_is_whole_shards():
    order = ShardOrder(starts_of(50_000), 0, 0, window_shards=4)
    for window in range(3):
        first, last = order.start_of(window), order.start_of(window + 1)
        shards = np.searchsorted(starts_of(50_000), order.slice(first, last), side="right") - 1
        assert set(shards) == set(order.shards_of(window).tolist()) and len(set(shards)) == 4
        assert order.window_at(first) == window == order.window_at(last - 1)
