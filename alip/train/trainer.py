"""The training loop: batches, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from alip import tokens
from alip.distributed import World
from alip.train.clock import StepClock
from alip.train.evaluation import Evaluation, EvaluationTime, evaluate_all
from alip.train.flops import ModelFlops, device_peak
from alip.train.nonfinite import NonFiniteWatch
from alip.train.parallel import naming_lost_ranks, share_buffers
from alip.train.plan import Plan
from alip.train.run_folder import Run
from alip.train.schedule import Schedule
from alip.train.signals import StopRequest
from alip.train.state import TrainState
from alip.train.step import StepResult, TrainStep


class Trainer:
    """One run, from the step that `state` has reached to its end: `Trainer(...).train()` gives the exit status.

    train_step: one optimizer step from micro-batches. loader: alip.data.loader's. run: folder, log and checkpoints.
    evaluations: done every plan.eval_every. flops: the model's, for the utilisation in the log.
    """

    def __init__(
        self,
        state: TrainState,
        train_step: TrainStep,
        loader: Any,
        schedule: Schedule,
        plan: Plan,
        world: World,
        run: Run,
        evaluations: Sequence[Evaluation] = (),
        flops: ModelFlops | None = None,
    ):
        self.state, self.train_step, self.loader, self.schedule = state, train_step, loader, schedule
        self.plan, self.world, self.run, self.evaluations, self.flops = plan, world, run, evaluations, flops
        self.clock = StepClock()
        self.nonfinite = NonFiniteWatch(plan.nonfinite_limit, only_loss=train_step.scaler is not None)
        self.peak = device_peak(world.device, train_step.precision)
        self._saved_at = self.run.saved_at
        self._evaluation_timed = False

    def train(self) -> int:
        """0: finished, or stopped by a signal and saved. 1: given up because the loss was not finite, or not saved."""
        stop = StopRequest(self.world)
        try:
            with naming_lost_ranks(self.world), contextlib.closing(self._batches()) as batches:
                return self._loop(batches, stop)
        finally:
            stop.close()
            self.run.log.close()

    def _loop(self, batches: Iterator[list[Any]], stop: StopRequest) -> int:
        state, plan, schedule = self.state, self.plan, self.schedule
        self.clock.restart()
        for micro_batches in batches:
            position = plan.position(state)
            result = self.train_step(micro_batches, schedule.learning_rate(position), schedule.beta1(position))
            state.advance(plan.global_batch, plan.epoch_samples)
            self._record(micro_batches, result)

            finished, epoch_ended = plan.finished(state), state.position == 0
            if finished or plan.log_due(state):
                self._log(micro_batches, result, schedule.learning_rate(position))
            if epoch_ended:
                self._log_mismatches()
            # Before saving, so that a run killed in between evaluates again.
            improved = (finished or plan.eval_due(state)) and self._evaluate()
            saving = improved or epoch_ended or plan.save_due(state)
            # Read before saving as well: a run that is lost is not to be saved as a good one.
            if (saving or finished or plan.log_due(state)) and self._is_lost():
                return self._give_up()
            if saving:
                self._save(epoch_ended, improved)
            if not finished and stop.agreed():
                return self._leave(stop)
            del micro_batches  # two steps' images would be on the device while the next ones are taken
        return self._finish()

    def _batches(self) -> Iterator[list[Any]]:
        """The micro-batches of one optimizer step after another, epoch by epoch, to the end of the plan."""
        state, plan = self.state, self.plan
        while not plan.finished(state):
            epoch = state.epoch
            with contextlib.closing(self.loader.epoch(epoch, start=state.position)) as batches:
                while state.epoch == epoch and not plan.finished(state):
                    with self.clock.waiting():
                        taken = [batch for _, batch in zip(range(plan.accum_freq), batches)]
                    if len(taken) < plan.accum_freq:
                        raise RuntimeError(
                            f"the data loader ended early, after {state.position} samples of epoch {epoch}"
                        )
                    yield taken
                    taken = []

    def _record(self, micro_batches: list[Any], result: StepResult) -> None:
        """Keeps what a step gave, on the device: nothing is read here."""
        index = torch.cat([batch.index for batch in micro_batches])
        self.state.meter.add(result)
        self.nonfinite.add(self.state.step, index, result)
        if self.state.mismatch_metrics:
            self.state.mismatch_metrics.add(index, result)
        self.run.log.advance()
        self.clock.steps += 1

    def _log(self, micro_batches: list[Any], result: StepResult, lr: float) -> None:
        state = self.state
        values = state.meter.read(self.world)  # waits until the device has done this step
        seconds = self.clock.seconds
        samples_per_s = self.clock.steps * self.plan.global_batch / seconds
        values |= dict(zip(("history_tc", "history_xt", "history_xc"), state.loss.history.tolist()))
        values |= {"lr": lr, "logit_scale": state.model.logit_scale.exp().item(), "samples_per_s": samples_per_s}
        values |= self._utilisation(micro_batches, samples_per_s)
        values["data_wait_s"] = self.clock.waited
        if self.world.device.type == "cuda":
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        left = (self.plan.total - self.plan.position(state)) * seconds / max(self.clock.steps, 1)
        self.run.log.train(self._position(), values, left)
        names = ("sample_weight", "text_weight", "caption_weight")
        self.run.log.weights(state.step, {name: getattr(result.outcome, name) for name in names})
        self.clock.restart()

    def _utilisation(self, micro_batches: list[Any], samples_per_s: float) -> dict[str, float]:
        """Model FLOPs per second of all ranks, and their fraction of the devices' peak where that is known.

        The texts' mean length is taken from this rank's last batch.
        """
        if self.flops is None:
            return {}
        texts = torch.cat([part for b in micro_batches for part in (b.text_tokens, b.caption_tokens)])
        per_sample = self.flops.per_sample(tokens.lengths(texts).double().mean().item())
        achieved = per_sample * samples_per_s
        found = {"model_tflops_per_s": achieved / 1e12}
        if self.peak is not None:
            found["mfu"] = achieved / (self.peak * self.world.world_size)
        return found

    def _log_mismatches(self) -> None:
        if self.state.mismatch_metrics:
            with self.clock.paused():
                self.run.log.gates(self._position(), self.state.mismatch_metrics.report(self.world))

    def _is_lost(self) -> bool:
        """True if too many steps in a row were not finite; names those that were not."""
        bad, lost = self.nonfinite.read()
        if bad:
            message = f"warning: loss or gradient not finite at steps {bad[:8]}; these steps were left out"
            self.run.log.event(self._position(), "nonfinite", steps=bad, message=message)
        return lost

    def _evaluate(self) -> bool:
        """Runs the evaluations; True if the mean of their primary metrics is the best so far."""
        if not self.evaluations:
            return False
        state = self.state
        with self.clock.paused():
            share_buffers(state.model, self.world)
            seconds: dict[str, float] = {}
            results = evaluate_all(self.evaluations, state.model, state.ema, self.world.device, seconds)
            primary = {e.name: e.primary(results[e.name]) for e in self.evaluations}
            for evaluation in self.evaluations:
                numbers = results[evaluation.name] | ({"weights": "ema"} if state.ema else {})
                self.run.log.evaluation(self._position(), evaluation.task, evaluation.dataset, numbers)
            mean = sum(primary.values()) / len(primary)
            # After a resume with other evaluations the earlier mean is of something else.
            comparable = state.best.keys() == {*primary, "mean", "step"}
            improved = mean > (state.best["mean"] if comparable else float("-inf"))
            if improved:
                state.best = {**primary, "mean": mean, "step": state.step}
        self._log_evaluation_time(seconds)
        return improved

    def _log_evaluation_time(self, seconds: dict[str, float]) -> None:
        """Once: what the evaluations cost beside training."""
        if self._evaluation_timed:
            return
        self._evaluation_timed = True
        every = self.plan.eval_every
        unit = every.unit.removesuffix("s") if every.count == 1 else every.unit
        interval = f"every {every.count} {unit}" if every.count else "at the end"
        cost = EvaluationTime(seconds, self.plan.eval_steps() * self.clock.seconds_per_step, interval)
        self.run.log.event(
            self._position(), "evaluation-time", seconds=seconds, fraction=round(cost.fraction, 4), message=cost.line()
        )

    def _save(self, epoch_ended: bool = False, best: bool = False) -> bool:
        """Writes a checkpoint, unless this step's is written already; False if the disk refused it."""
        state = self.state
        if self._saved_at != state.step:
            with self.clock.paused():
                share_buffers(state.model, self.world)
                content = state.capture(self.world, self.run.fingerprint)
                ended = state.epoch if epoch_ended else None
                if content is None or self.run.checkpoints.save(content, ended, best):
                    self._saved_at = state.step
        return self._saved_at == state.step

    def _finish(self) -> int:
        saved = self._save()
        message = f"finished after {self.state.step} steps"
        if not saved:
            message += (
                ", but the last checkpoint could not be saved; --resume auto repeats the steps since the last one"
            )
        self.run.log.event(self._position(), "finished", message=message)
        return 0 if saved else 1

    def _leave(self, stop: StopRequest) -> int:
        saved = self._save()
        name = stop.name or "a signal to another rank"
        message = (
            f"stopped by {name} at step {self.state.step}{' and saved' if saved else ', but could not save'}; "
            "resume with the same command and --resume auto"
        )
        self.run.log.event(self._position(), "stopped", signal=name, message=message)
        return 0 if saved else 1

    def _give_up(self) -> int:
        ids = self.nonfinite.write(self.run.folder, self.world)
        self._save()
        message = (
            f"gave up at step {self.state.step}: loss or gradient not finite {self.plan.nonfinite_limit} times in a "
            f"row; the weights are those before it, the batches' sample numbers are in {ids}; "
            "look at these samples, or lower --lr"
        )
        self.run.log.event(self._position(), "gave-up", ids=str(ids), message=message)
        return 1

    def _position(self) -> dict[str, Any]:
        """Step, epoch and samples for a line of metrics.jsonl; epoch counts completed ones."""
        state = self.state
        epoch = round(state.epoch + state.position / (self.plan.steps_per_epoch * self.plan.global_batch), 4)
        return {"step": state.step, "epoch": epoch, "samples": state.samples}
