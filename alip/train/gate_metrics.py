"""Do the gates see the noise? Where it is known which raw texts are wrong, the weights are compared with it."""

from __future__ import annotations

import numpy as np
import torch

from alip.distributed import World, gather_objects
from alip.eval.gates import summarize
from alip.train.step import StepResult


class GateTruth:
    """Collects the gates' values of an epoch's updates, as they were when they weighted the loss.

    wrong: (samples,) booleans: true where the raw text is wrong (alip.eval.gates.read_truth).
    """

    def __init__(self, wrong: np.ndarray):
        self.wrong = wrong
        self.index: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def add(self, index: torch.Tensor, result: StepResult) -> None:
        """index: (B,) sample numbers of this rank's part of the update. Never waits for the device."""
        outcome = result.outcome
        weight = outcome.sample_weight * outcome.text_weight
        self.index.append(index.cpu())
        self.values.append(torch.stack([outcome.text_caption_similarity, weight]).detach())

    def report(self, world: World) -> dict[str, float]:
        """The epoch's numbers, as `alip.eval.gates.summarize` gives them, and begins anew. All ranks call it."""
        parts = gather_objects(self.state(), world)
        self.index, self.values = [], []
        index = torch.cat([part["index"] for part in parts]).numpy()
        similarity, weight = torch.cat([part["values"] for part in parts], dim=1).double().numpy()
        finite = np.isfinite(similarity) & np.isfinite(weight)  # an update that was left out says nothing
        wrong, similarity, weight = self.wrong[index][finite], similarity[finite], weight[finite]
        return summarize(similarity, weight, wrong)

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        if not self.index:
            return {"index": torch.zeros(0, dtype=torch.int64), "values": torch.zeros(2, 0)}
        self.index, self.values = [torch.cat(self.index)], [torch.cat(self.values, dim=1)]
        return {"index": self.index[0], "values": self.values[0].cpu()}

    def load(self, states: list[dict[str, torch.Tensor]], device: torch.device) -> None:
        """Takes up what was collected before."""
        self.index = [saved["index"] for saved in states]
        self.values = [saved["values"].to(device) for saved in states]
