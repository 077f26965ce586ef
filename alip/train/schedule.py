"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to drift apart on a resume."""

from __future__ import annotations

import math
from dataclasses import dataclass

from alip.errors import UserError

NAMES = ("one-cycle", "cosine", "const", "const-cooldown")
_ALIASES = {"constant": "const", "constant-cooldown": "const-cooldown"}

# torch's OneCycleLR defaults, which the released recipe uses: lr/25 -> lr -> lr/25e4, and beta1 0.95 -> 0.85 -> 0.95.
_START_DIVISOR = 25.0
_END_DIVISOR = 1e4
_BETA1_HIGH, _BETA1_LOW = 0.95, 0.85


def canonical_name(name: str) -> str:
    """One of NAMES, from it or from an earlier name. UserError for any other."""
    found = _ALIASES.get(name, name)
    if found not in NAMES:
        raise UserError(f"--lr-scheduler {name}: choose one of {', '.join(NAMES)}")
    return found


@dataclass(frozen=True)
class Schedule:
    """Learning rate (and beta1) of optimizer step number `step`, counted from 0.

    kind: one of NAMES. peak: the highest learning rate. total: number of steps.
    warmup: steps of warm-up; cooldown: steps of the final linear cool-down ("const-cooldown" only).
    cycle_beta1: let beta1 mirror the cycle, as OneCycleLR does by default (the released runs did that,
    so their beta1 of 0.9 was never used).
    """

    kind: str
    peak: float
    total: int
    warmup: int = 0
    cooldown: int = 0
    cycle_beta1: bool = False

    def __post_init__(self):
        if self.kind not in NAMES:
            raise ValueError(f"schedule {self.kind!r} is none of {', '.join(NAMES)}")

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step` in [0, total); later steps keep the last one's."""
        step = min(step, self.total - 1)
        if self.kind == "one-cycle":
            start = self.peak / _START_DIVISOR
            return self._cycle(step, start, self.peak, start / _END_DIVISOR)
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.kind == "cosine":
            done = (step - self.warmup) / max(1, self.total - self.warmup)
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * done))
        if self.kind == "const-cooldown" and step >= self.total - self.cooldown:
            return self.peak * (self.total - step) / self.cooldown
        return self.peak

    def beta1(self, step: int) -> float | None:
        """The optimizer's beta1 of step `step`; None leaves its own."""
        if not self.cycle_beta1 or self.kind != "one-cycle":
            return None
        return self._cycle(min(step, self.total - 1), _BETA1_HIGH, _BETA1_LOW, _BETA1_HIGH)

    def _cycle(self, step: int, start: float, middle: float, end: float) -> float:
        """Half a cosine from start to middle over the warm-up, another from middle to end; as torch's OneCycleLR."""
        top = float(self.warmup) - 1.0
        if step <= top:
            return _cosine(start, middle, step / top if top > 0 else 1.0)
        length = float(self.total - 1) - top
        return _cosine(middle, end, (step - top) / length if length > 0 else 1.0)


def create_schedule(
    kind: str, peak: float, total: int, warmup: str | float, cooldown: float = 0.2, cycle_beta1: bool = False
) -> Schedule:
    """A schedule of `total` steps.

    warmup: a fraction of all steps (0.1, "0.1") or a number of steps (500, "500").
    cooldown: the fraction of all steps over which "const-cooldown" falls.
    """
    return Schedule(kind, peak, total, _steps(warmup, total), round(cooldown * total), cycle_beta1)


def canonical_warmup(value: str) -> str:
    """One spelling for each warm-up, so that `.10` and `0.1` are the same recipe. ValueError as by create_schedule."""
    fraction, number = _parsed(value)
    return repr(number) if fraction and number else str(round(number))


def _steps(value: str | float, total: int) -> int:
    """ "0.1" → a tenth of all steps; "500" → 500 steps."""
    fraction, number = _parsed(value)
    return min(total, round(number * total) if fraction else round(number))


def _parsed(value: str | float) -> tuple[bool, float]:
    """Whether it is a fraction of all steps, not a number of them; and the number."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf or (number > 1 and number != round(number)):
        raise ValueError(f"a warm-up of {value} is not possible: give a fraction (0.1) or a number of steps (500)")
    return number < 1 or (isinstance(value, str) and "." in value and number == 1.0), number


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))
