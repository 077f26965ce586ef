"""The loop: batch, update, log, evaluate, save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alip.distributed import World
from alip.train.evaluation import Evaluation, evaluate_all
from alip.train.nonfinite import NonFiniteWatch
from alip.train.parallel import naming_lost_ranks, share_buffers
from alip.train.plan import Plan
from alip.train.run_folder import Run
from alip.train.schedule import Schedule
from alip.train.signals import StopRequest
from alip.train.state import TrainState
from alip.train.step import StepResult, TrainStep


@dataclass
class Fit:
    """One run from where `state` stands to its end; `Fit(...).run()` gives the exit status.

    0: finished, or stopped by a signal and saved; 1: given up because the loss was not finite.
    files: the run's folder, log and checkpoints. evaluations: done every plan.eval_every.
    """

    state: TrainState
    step: TrainStep
    loader: Any
    schedule: Schedule
    plan: Plan
    world: World
    files: Run
    evaluations: Sequence[Evaluation] = ()
    _saved_at: int = field(default=-1, init=False)
    _waited: float = field(default=0.0, init=False)

    def run(self) -> int:
        """Trains; see the class."""
        plan, state = self.plan, self.state
        self._watch = NonFiniteWatch(plan.nonfinite_limit, only_loss=self.step.scaler is not None)
        self._window_start, self._window_steps = time.perf_counter(), 0
        stop = StopRequest(self.world)
        status = None
        try:
            with naming_lost_ranks(self.world):
                while status is None and plan.position(state) < plan.total:
                    status = self._epoch(stop)
                if status is None:
                    status = self._finish()
        finally:
            stop.close()
            self.files.log.close()
        return status

    def _epoch(self, stop: StopRequest) -> int | None:
        """The rest of the present epoch; an exit status if the run is to end here."""
        plan, state = self.plan, self.state
        epoch = state.epoch
        batches = iter(self.loader.epoch(epoch, start=state.position))
        try:
            while state.epoch == epoch and plan.position(state) < plan.total:
                micro_batches = self._take(batches)
                position = plan.position(state)
                lr = self.schedule.learning_rate(position)
                result = self.step(micro_batches, lr, self.schedule.beta1(position))
                state.advance(plan.global_batch, plan.epoch_samples)
                if self._after_update(micro_batches, result, lr):
                    return self._give_up()
                if stop.agreed():
                    return self._leave(stop)
        finally:
            if hasattr(batches, "close"):
                batches.close()
        return None

    def _take(self, batches: Iterator[Any]) -> list[Any]:
        """The micro-batches of one update; the time spent waiting for them is noted."""
        start = time.perf_counter()
        taken = [batch for _, batch in zip(range(self.plan.accum_freq), batches)]
        self._waited += time.perf_counter() - start
        if len(taken) < self.plan.accum_freq:
            raise RuntimeError(
                f"the reader ended early, after {self.state.position} triplets of epoch {self.state.epoch}"
            )
        return taken

    def _after_update(self, micro_batches: list[Any], result: StepResult, lr: float) -> bool:
        """All that follows an update. True if the run is lost to losses that are not finite."""
        plan, state = self.plan, self.state
        index = torch.cat([batch.index for batch in micro_batches])
        state.meter.add(result)
        self._watch.add(state.step, index, result)
        if state.mismatch_metrics:
            state.mismatch_metrics.add(index, result)
        self.files.log.advance()
        self._window_steps += 1

        epoch_ended, finished = state.position == 0, plan.position(state) >= plan.total
        if state.step % plan.log_every == 0 or finished:
            self._log(result, lr)
        if epoch_ended and state.mismatch_metrics:
            self.files.log.gates(self._place(), state.mismatch_metrics.report(self.world))
        due = (state.step, state.epoch, epoch_ended)
        saving = epoch_ended or plan.save_every.due(*due)
        # Before saving, so that a run killed in between evaluates again.
        improved = bool(self.evaluations) and (plan.eval_every.due(*due) or finished) and self._evaluate()
        # The flags are read before saving, too: a lost run is told from its checkpoint.
        lost = self._read_watch() if saving or state.step % plan.log_every == 0 else False
        if not lost and (saving or improved):
            self._save(epoch_ended, improved)
        return lost

    def _log(self, result: StepResult, lr: float) -> None:
        state = self.state
        values = state.meter.read(self.world)  # the only wait for the device
        seconds = max(time.perf_counter() - self._window_start, 1e-9)
        history = state.loss.history.tolist()
        values |= dict(zip(("history_tc", "history_xt", "history_xc"), history))
        values |= {
            "lr": lr,
            "logit_scale": state.model.logit_scale.exp().item(),
            "pairs_per_s": self._window_steps * self.plan.global_batch / seconds,
            "data_wait_s": self._waited,
        }
        if self.world.device.type == "cuda":
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        left = (self.plan.total - self.plan.position(state)) * seconds / max(self._window_steps, 1)
        self.files.log.train(self._place(), values, left)
        names = ("sample_weight", "text_weight", "caption_weight")
        self.files.log.weights(state.step, {name: getattr(result.outcome, name) for name in names})
        self._restart_clock()

    def _restart_clock(self) -> None:
        """Logging, evaluation and saving are not training: their time is not in pairs_per_s."""
        self._window_start, self._window_steps, self._waited = time.perf_counter(), 0, 0.0

    def _read_watch(self) -> bool:
        bad, lost = self._watch.read()
        if bad:
            self.files.log.event(
                self._place(),
                "nonfinite",
                steps=bad,
                message=f"warning: loss or gradient not finite at steps {bad[:8]}; these updates were left out",
            )
        return lost

    def _evaluate(self) -> bool:
        """Runs the evaluations; True if their mean headline number is the best so far."""
        state = self.state
        share_buffers(state.model, self.world)
        started = time.perf_counter()
        results = evaluate_all(self.evaluations, state.model, state.moving_average, self.world.device)
        headlines = {e.name: e.headline(results[e.name]) for e in self.evaluations}
        for evaluation in self.evaluations:
            numbers = results[evaluation.name]
            self.files.log.evaluation(self._place(), evaluation.task, evaluation.set_name, numbers)
        mean = sum(headlines.values()) / len(headlines)
        improved = mean > state.best.get("mean", float("-inf"))
        if improved:
            state.best = {**headlines, "mean": mean, "step": state.step}
        self._window_start += time.perf_counter() - started
        return improved

    def _save(self, epoch_ended: bool = False, best: bool = False) -> bool:
        """Writes a checkpoint, unless this step's is written already; False if the disk refused it."""
        state = self.state
        if self._saved_at == state.step:
            return True
        started = time.perf_counter()
        share_buffers(state.model, self.world)
        content = state.capture(self.world, self.loader.state(state.epoch, state.position), self.files.identity)
        if content is None or self.files.checkpoints.save(content, state.epoch if epoch_ended else None, best):
            self._saved_at = state.step
        self._window_start += time.perf_counter() - started
        return self._saved_at == state.step

    def _finish(self) -> int:
        saved = self._save()
        outcome = f"finished after {self.state.step} steps"
        message = (
            outcome if saved else f"{outcome}, but the last checkpoint could not be saved; --resume auto repeats it"
        )
        self.files.log.event(self._place(), "finished", message=message)
        return 0 if saved else 1

    def _leave(self, stop: StopRequest) -> int:
        saved = self._save()
        name = stop.name or "a signal to another rank"
        message = (
            f"stopped by {name} at step {self.state.step}{' and saved' if saved else ', but could not save'}; "
            "go on with the same command and --resume auto"
        )
        self.files.log.event(self._place(), "stopped", signal=name, message=message)
        return 0 if saved else 1

    def _give_up(self) -> int:
        ids = self._watch.write(self.files.folder, self.world)
        self._save()
        message = (
            f"gave up at step {self.state.step}: loss or gradient not finite {self.plan.nonfinite_limit} times in a "
            f"row; the weights are those before it, the batches' sample numbers are in {ids}; "
            "look at these samples, or lower --lr"
        )
        self.files.log.event(self._place(), "gave-up", ids=str(ids), message=message)
        return 1

    def _place(self) -> dict[str, Any]:
        """Where the run stands, as every line of metrics.jsonl says it; epoch counts completed ones."""
        state = self.state
        epoch = round(state.epoch + state.position / (self.plan.steps_per_epoch * self.plan.global_batch), 4)
        return {"step": state.step, "epoch": epoch, "samples": state.samples}
