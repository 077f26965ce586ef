"""The log of a run: lines or a progress bar on the console, metrics.jsonl, TensorBoard, wandb."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from alip.errors import UserError
from alip.files import atomic_write, bounded_lines

# Keys of a train line that go to TensorBoard under another heading than "train/".
_GATES = ("sample_weight", "text_weight", "caption_weight", "history_tc", "history_xt", "history_xc")
_LONGEST_LINE = 1 << 24  # bytes: a longer one was not written here
_SPEED = ("samples_per_s", "model_tflops_per_s", "mfu", "data_wait_s", "gpu_memory_gib")


class RunLog:
    """The log of one run. On ranks other than 0 (`enabled=False`) every method does nothing.

    folder: RUN, gets metrics.jsonl and tensorboard/. total_steps: for the bar and the time left.
    after_step: the step that a run resumes from: later lines are of a part of the run that was lost, and are dropped,
    so that every step is in the file once.
    A full disk does not end the run: one warning, and the console continues.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        enabled: bool = True,
        after_step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self.enabled, self.total_steps = enabled, total_steps
        self._bar = self._tensorboard = self._wandb = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._disk_full = False
        _keep_until(self._path, after_step)
        if tensorboard:
            self._tensorboard = _open_tensorboard(folder / "tensorboard", after_step)
        if wandb_project:
            self._wandb = _open_wandb(wandb_project, folder, settings or {}, resumes=after_step > 0)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=after_step, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        if self._bar is not None:
            self._bar.update(1)

    def train(self, position: dict[str, Any], values: dict[str, float], seconds_left: float) -> None:
        """A log step. position: step, epoch, samples; values: the keys of a train line."""
        if not self.enabled:
            return
        self._write({"kind": "train", **position, **values})
        self._scalars({_heading(key): value for key, value in values.items()}, position["step"])
        text = _train_line(values, seconds_left)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            width = len(str(self.total_steps))
            self.say(f"step {position['step']:>{width}}/{self.total_steps} epoch {position['epoch']:.2f} {text}")

    def weights(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Histograms of the gates' weights of one batch, (B,) each; of a step that was not finite what is finite."""
        for name, values in weights.items() if self._tensorboard is not None else ():
            finite = values[values.isfinite()].float().cpu()
            if len(finite) and self._tensorboard is not None:  # TensorBoard refuses one of nothing
                self._guard(self._tensorboard.add_histogram, f"weights/{name}", finite, step)

    def evaluation(self, position: dict[str, Any], task: str, dataset: str, values: dict[str, Any]) -> None:
        """Numbers of one evaluation dataset."""
        if not self.enabled:
            return
        self._write({"kind": "eval", **position, "task": task, "dataset": dataset, **values})
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        self._scalars({f"{task}/{dataset}/{key}": value for key, value in numbers.items()}, position["step"])
        self.say(f"step {position['step']} {task} {dataset}: {_numbers(numbers)}")

    def gates(self, position: dict[str, Any], values: dict[str, float]) -> None:
        """Numbers of an epoch's gates against the mismatch labels."""
        if not self.enabled:
            return
        self._write({"kind": "gates", **position, **values})
        self._scalars({f"gates/{key}": value for key, value in values.items()}, position["step"])
        self.say(f"step {position['step']} gates: {_numbers(values)}")

    def event(self, position: dict[str, Any], event: str, **details: Any) -> None:
        """Something that happened: start, resume, warning, stop. details: plain values; `message` is shown."""
        if not self.enabled:
            return
        self._write({"kind": "event", **position, "event": event, **details})
        if "message" in details:
            self.say(details["message"])

    def say(self, text: str) -> None:
        """One line on the console of rank 0."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # `| head`: no reason to lose a run
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"nobody reads the console any more; the run continues, and logs into {self._path}", file=sys.stderr)

    def close(self) -> None:
        """Ends the files; what was written is readable at any time before."""
        if self._bar is not None:
            self._bar.close()
        if self._tensorboard is not None:
            self._guard(self._tensorboard.close)
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps({k: _plain(v) for k, v in {**line, "time": round(time.time(), 3)}.items()})
        # Opened per line: the file may be moved or cut by others, and every line is complete on the disk.
        self._guard(_append, self._path, text)
        if self._wandb is not None:
            heading = "/".join(str(line[part]) for part in ("kind", "task", "dataset") if part in line)
            numbers = {k: v for k, v in line.items() if isinstance(v, int | float)}
            self._wandb.log({f"{heading}/{k}": v for k, v in numbers.items() if k != "step"}, step=line["step"])

    def _scalars(self, values: dict[str, float], step: int) -> None:
        if self._tensorboard is not None:
            for name, value in values.items():
                if self._tensorboard is not None:
                    self._guard(self._tensorboard.add_scalar, name, value, step)

    def _guard(self, write, *arguments) -> None:
        """A write that may find the disk full. TensorBoard's writer is lost with its first failure."""
        try:
            write(*arguments)
        except OSError as error:
            if write is not _append:
                self._tensorboard = None
            if not self._disk_full:
                self._disk_full = True
                self.say(f"warning: the run's log could not be written, continuing without it: {error}")


def _append(path: Path, text: str) -> None:
    with path.open("ab+") as file:
        # A full disk may have taken half a line: the next one starts on its own.
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write((text + "\n").encode())


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines of later steps, and what is no whole line of a log."""
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path}: is not a regular file; remove it")
    with open(path, "rb", buffering=1 << 20) as file:
        whole = all(_step_of(line) <= step for line in bounded_lines(file, _LONGEST_LINE))
    if whole:
        return
    try:
        with open(path, "rb") as log, atomic_write(path) as file:
            for line in bounded_lines(log, _LONGEST_LINE):
                if _step_of(line) <= step:
                    file.write(line.removesuffix(b"\n") + b"\n")
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); make room, then resume") from error


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for one that is not whole, as a killed process or a full disk leaves it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return math.inf


def _open_tensorboard(folder: Path, after_step: int):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after_step + 1 if after_step else None)


def _open_wandb(project: str, folder: Path, settings: dict[str, Any], resumes: bool):
    """A run that resumes continues under the id of its first start, which is kept in the run's folder."""
    import wandb

    file = folder / "wandb-id.txt"
    known = file.read_text(encoding="utf-8").strip() if resumes and file.is_file() else None
    run = wandb.init(project=project, dir=str(folder), name=folder.name, config=settings, id=known, resume="allow")
    if known is None:
        with atomic_write(file) as kept:
            kept.write(f"{run.id}\n".encode())
    return run


def _heading(key: str) -> str:
    return f"{'gates' if key in _GATES else 'speed' if key in _SPEED else 'train'}/{key}"


def _train_line(v: dict[str, float], seconds_left: float) -> str:
    parts = [
        f"loss {v['loss']:.4f} (text {v['text_loss']:.4f} caption {v['caption_loss']:.4f})",
        f"weights {v['sample_weight']:.3f} {v['text_weight']:.3f} {v['caption_weight']:.3f}",
        f"lr {v['lr']:.2e} scale {v['logit_scale']:.2f} grad {v['grad_norm']:.2f}",
        f"{v['samples_per_s']:.0f} samples/s wait {v['data_wait_s']:.2f} s",
    ]
    if "mfu" in v:
        parts.append(f"mfu {100 * v['mfu']:.1f} %")
    if "gpu_memory_gib" in v:
        parts.append(f"mem {v['gpu_memory_gib']:.1f} GiB")
    return " ".join([*parts, f"left {_clock(seconds_left)}"])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _numbers(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


def _plain(value: Any) -> Any:
    """NaN and infinity are no JSON: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
