"""Do the gates see the noise? Where mismatched raw texts are labelled, the weights are compared with the labels."""

from __future__ import annotations

import numpy as np
import torch

from alip.distributed import World, gather_objects
from alip.eval.gates.labels import summarize
from alip.train.step import StepResult


class MismatchMetrics:
    """Collects the gates' values of an epoch's optimizer steps, as they were when they weighted the loss.

    is_mismatched: (samples,) booleans: true where the raw text is mismatched (labels.read_mismatch_labels).
    """

    def __init__(self, is_mismatched: np.ndarray):
        self.is_mismatched = is_mismatched
        self.index: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def add(self, index: torch.Tensor, result: StepResult) -> None:
        """index: (B,) sample numbers of this rank's part of the step. Never waits for the device."""
        outcome = result.outcome
        weight = outcome.sample_weight * outcome.text_weight
        self.index.append(index.cpu())
        self.values.append(torch.stack([outcome.text_caption_similarity, weight]).detach())

    def report(self, world: World) -> dict[str, float]:
        """The epoch's numbers, as `labels.summarize` gives them, then starts empty again. All ranks call it.

        Its count is `scored_samples` here: in a log line, `samples` are those that the run has seen.
        """
        parts = gather_objects(self.state(), world)
        self.index, self.values = [], []
        index = torch.cat([part["index"] for part in parts]).numpy()
        similarity, weight = torch.cat([part["values"] for part in parts], dim=1).double().numpy()
        finite = np.isfinite(similarity) & np.isfinite(weight)  # a step that was left out carries no information
        numbers = summarize(similarity[finite], weight[finite], self.is_mismatched[index][finite])
        return {{"samples": "scored_samples"}.get(name, name): value for name, value in numbers.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        if not self.index:
            return {"index": torch.zeros(0, dtype=torch.int64), "values": torch.zeros(2, 0)}
        self.index, self.values = [torch.cat(self.index)], [torch.cat(self.values, dim=1)]
        return {"index": self.index[0], "values": self.values[0].cpu()}

    def load(self, states: list[dict[str, torch.Tensor]], device: torch.device) -> None:
        """Restores what was collected before."""
        self.index = [saved["index"] for saved in states]
        self.values = [saved["values"].to(device) for saved in states]
