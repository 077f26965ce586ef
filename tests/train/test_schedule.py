import math
from unittest import mock

import pytest
import torch
from open_clip_train import scheduler

from alip.train.schedule import canonical_warmup, create_schedule


@pytest.mark.parametrize("total, warmup", [(100, "0.1"), (37, "0.25"), (1000, "0.01")])
def test_one_cycle_is_torchs(total, warmup):
    """The released runs used OneCycleLR, momentum cycling included."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=(0.9, 0.98))
    # pct_start as an exact number of steps, as ours is.
    start = round(float(warmup) * total) / total
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=total, pct_start=start)
    ours = create_schedule("one-cycle", 1e-3, total, warmup, cycle_beta1=True)
    for step in range(total):
        group = optimizer.param_groups[0]
        assert ours.learning_rate(step) == pytest.approx(group["lr"], rel=1e-9), step
        assert ours.beta1(step) == pytest.approx(group["betas"][0], rel=1e-9), step
        optimizer.step()
        if step < total - 1:
            theirs.step()
    assert create_schedule("one-cycle", 1e-3, total, warmup).beta1(0) is None


def test_cosine_rises_to_the_peak_and_falls_to_zero():
    schedule = create_schedule("cosine", 2.0, 110, "10")
    rates = [schedule.learning_rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([2.0 * (i + 1) / 10 for i in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[109] == pytest.approx(1.0 + math.cos(math.pi * 0.99))
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_and_its_cooldown():
    constant = create_schedule("const", 3.0, 50, "0.1")
    assert [constant.learning_rate(s) for s in (0, 4, 5, 49, 400)] == pytest.approx([0.6, 3.0, 3.0, 3.0, 3.0])
    cooled = create_schedule("const-cooldown", 3.0, 50, "0", cooldown=0.2)
    assert cooled.learning_rate(39) == 3.0
    assert [cooled.learning_rate(s) for s in (40, 49)] == pytest.approx([3.0, 0.3])


def test_open_clips_schedules_are_open_clips():
    theirs = {
        "cosine": scheduler.cosine_lr(mock.MagicMock(), 2.0, 7, 50),
        "const": scheduler.const_lr(mock.MagicMock(), 2.0, 7, 50),
        "const-cooldown": scheduler.const_lr_cooldown(mock.MagicMock(), 2.0, 7, 50, 20),
    }
    for kind, adjust in theirs.items():
        ours = create_schedule(kind, 2.0, 50, "7", cooldown=0.4)
        assert [ours.learning_rate(step) for step in range(50)] == pytest.approx([adjust(step) for step in range(50)])


@pytest.mark.parametrize(
    ("spellings", "canonical"),
    [
        (("0.1", ".1", ".10", "1e-1"), "0.1"),
        (("500", "500.0", "5e2"), "500"),
        (("1",), "1"),
        (("1.0", "1.00"), "1.0"),
        (("0", "0.0", ".0"), "0"),
    ],
)
def test_a_warmup_has_one_spelling(spellings, canonical):
    assert {canonical_warmup(one) for one in spellings} == {canonical}
    lengths = {create_schedule("cosine", 1.0, 2000, one).warmup for one in (*spellings, canonical)}
    assert len(lengths) == 1


def test_warmup_as_fraction_or_number():
    assert create_schedule("cosine", 1.0, 200, "0.1").warmup == 20
    assert create_schedule("cosine", 1.0, 200, "30").warmup == 30
    assert create_schedule("cosine", 1.0, 200, "1").warmup == 1
    assert create_schedule("cosine", 1.0, 200, "1.0").warmup == 200
    assert create_schedule("cosine", 1.0, 200, "5000").warmup == 200
    for text in ("-1", "2.5", "inf", "1e400", "nan", "slow", ""):
        with pytest.raises(ValueError, match="give a fraction"):
            create_schedule("cosine", 1.0, 200, text)
    with pytest.raises(ValueError):
        create_schedule("square", 1.0, 200, "0.1")
