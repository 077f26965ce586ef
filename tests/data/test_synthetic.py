"""Synthetic batches: like a dataset's, the same for the same seed, and for any number of ranks."""

import pytest
import torch

from alip import tokens
from alip.data.loader import create_loader, open_data
from alip.data.synthetic import SyntheticData
from alip.distributed import World
from alip.errors import UserError

FORM = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3, "context_length": 77, "vocab_size": 49408}


def loader(samples=100, batch_size=8, rank=0, world_size=1, **options):
    return create_loader(SyntheticData(samples), batch_size, world=World(rank, rank, world_size), **FORM, **options)


def test_batches_look_like_a_datasets():
    batch = next(iter(loader().epoch(0)))
    assert (batch.image.shape, batch.image.dtype) == ((8, 3, 16, 16), torch.float32)
    assert abs(batch.image.mean()) < 0.1 and abs(batch.image.std() - 1) < 0.1
    for texts, shortest, longest in ((batch.text_tokens, 3, 24), (batch.caption_tokens, 8, 16)):
        assert (texts.shape, texts.dtype) == ((8, 77), torch.int64)
        assert (texts[:, 0] == 49406).all() and (texts.max(dim=1).values == 49407).all()
        words = tokens.lengths(texts) - 2
        assert shortest <= words.min() and words.max() <= longest
        assert all((row[length:] == 0).all() and (row[:length] > 0).all() for row, length in zip(texts, words + 2))
    assert not torch.equal(batch.text_tokens, batch.caption_tokens)


def test_an_epoch_has_every_sample_once_and_resumes_anywhere():
    whole = list(loader().epoch(1))
    assert len(whole) == loader().batches_per_epoch == 12
    seen = torch.cat([batch.index for batch in whole])
    assert len(seen.unique()) == 96
    for a, b in zip(whole[5:], loader().epoch(1, start=40), strict=True):
        assert all(
            torch.equal(getattr(a, name), getattr(b, name))
            for name in ("image", "text_tokens", "caption_tokens", "index")
        )
    assert not torch.equal(next(iter(loader().epoch(0))).index, whole[0].index)


def test_the_same_on_any_number_of_ranks_and_another_with_another_seed():
    one = next(iter(loader(batch_size=6).epoch(0)))
    ranks = [next(iter(loader(batch_size=2, rank=rank, world_size=3).epoch(0))) for rank in range(3)]
    for name in ("image", "text_tokens", "caption_tokens", "index"):
        assert torch.equal(torch.cat([getattr(rank, name) for rank in ranks]), getattr(one, name))
    other = next(iter(loader(batch_size=6, seed=1).epoch(0)))
    assert not torch.equal(other.image, one.image)


def test_too_few_samples():
    assert open_data(None, "synthetic", 7) == SyntheticData(7)
    with pytest.raises(UserError, match="--train-num-samples"):
        loader(samples=7)
