"""How long a run is, and how often it does what."""

from __future__ import annotations

from dataclasses import dataclass

from alip.distributed import World
from alip.errors import UserError
from alip.train.state import TrainState


@dataclass(frozen=True)
class Interval:
    """Every `count` steps or epochs; 0 for never."""

    count: int
    unit: str  # "steps" or "epochs"

    def __str__(self) -> str:
        """As the flag has it, "500steps"."""
        return f"{self.count}{self.unit}"

    def due(self, step: int, epoch: int, epoch_ended: bool) -> bool:
        """After optimizer step number `step` (from 1); epoch: epochs completed."""
        if self.count == 0:
            return False
        return step % self.count == 0 if self.unit == "steps" else epoch_ended and epoch % self.count == 0


@dataclass(frozen=True)
class Plan:
    """How long and how often, in optimizer steps.

    total: steps of the whole run; in_steps: total was asked for in steps, not epochs (it matters only to a run
    resumed with another batch size). global_batch: samples of one step, over all ranks; epoch_samples: of the data.
    """

    total: int
    steps_per_epoch: int
    global_batch: int
    epoch_samples: int
    accum_freq: int = 1
    in_steps: bool = False
    log_every: int = 50
    save_every: Interval = Interval(1000, "steps")
    eval_every: Interval = Interval(1, "epochs")
    nonfinite_limit: int = 10

    def position(self, state: TrainState) -> int:
        """How far along the schedule the next step is, in [0, total]."""
        return state.step if self.in_steps else state.epoch * self.steps_per_epoch + state.position // self.global_batch

    def finished(self, state: TrainState) -> bool:
        """Whether no step is left."""
        return self.position(state) >= self.total

    def last_step(self, state: TrainState) -> int:
        """The number of the run's last step: `total`, unless a part was trained with another batch size."""
        return state.step + max(0, self.total - self.position(state))

    def log_due(self, state: TrainState) -> bool:
        """Whether the step just made is one to log."""
        return state.step % self.log_every == 0

    def save_due(self, state: TrainState) -> bool:
        """Whether to save after the step just made, besides the end of every epoch."""
        return self.save_every.due(state.step, state.epoch, state.position == 0)

    def eval_steps(self) -> int:
        """Optimizer steps from one evaluation to the next; without an interval there is one, at the end."""
        if self.eval_every.count == 0:
            return self.total
        in_steps = self.eval_every.count * (1 if self.eval_every.unit == "steps" else self.steps_per_epoch)
        return min(in_steps, self.total)

    def eval_due(self, state: TrainState) -> bool:
        """Whether to evaluate after the step just made."""
        return self.eval_every.due(state.step, state.epoch, state.position == 0)


def create_plan(
    epoch_samples: int,
    world: World,
    *,
    batch_size: int,
    accum_freq: int,
    epochs: int,
    steps: int | None,
    log_every: int,
    save_every: Interval,
    eval_every: Interval,
    nonfinite_limit: int,
) -> Plan:
    """The plan of a run over `epoch_samples` samples; UserError if they are not enough for one step."""
    global_batch = batch_size * accum_freq * world.world_size
    steps_per_epoch = epoch_samples // global_batch
    if steps_per_epoch == 0:
        raise UserError(
            f"a step takes {global_batch} samples (--batch-size x --accum-freq x ranks), and the data has "
            f"{epoch_samples}: lower --batch-size or --accum-freq"
        )
    return Plan(
        total=steps or epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        global_batch=global_batch,
        epoch_samples=epoch_samples,
        accum_freq=accum_freq,
        in_steps=steps is not None,
        log_every=log_every,
        save_every=save_every,
        eval_every=eval_every,
        nonfinite_limit=nonfinite_limit,
    )
