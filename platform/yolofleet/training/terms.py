"""The loss terms of all workers, as rows of metrics show them."""

from __future__ import annotations

from typing import Any

import torch

from yolofleet.training.group import WorkerGroup


class LossTerms:
    """The loss terms and skipped samples of all workers since the last row of metrics."""

    NAMES = ("loss", "loss_box", "loss_objectness", "loss_classification")

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._sums = torch.zeros(len(self.NAMES) + 2, dtype=torch.float64, device=group.device)

    @torch.no_grad()
    def add(self, result: Any, num_skipped: int) -> None:
        """Add a micro-batch's loss and the number of its samples that could not be read; nothing waits for a device."""
        box, objectness, classification = (
            term.detach().double().reshape(()) for term in (result.box, result.objectness, result.classification)
        )
        self._sums[:4] += torch.stack([box + objectness + classification, box, objectness, classification])
        self._sums[4] += 1
        self._sums[5] += num_skipped

    def take(self) -> dict[str, float]:
        """Return the means over all workers' micro-batches; a collective, so every worker calls it."""
        self._group.sum(self._sums)
        *terms, count, skipped = self._sums.tolist()
        self._sums.zero_()
        return {name: term / count for name, term in zip(self.NAMES, terms, strict=True)} | {"skipped_samples": skipped}
