"""The golden loss cases: predictions, targets and what the published implementation made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolofleet.losses import DetectionLoss

GOLDEN = Path(__file__).parents[1] / "golden" / "losses"

# Anchors of the published models, in pixels.
ANCHORS = {
    "p5": [[12, 16, 19, 36, 40, 28], [36, 75, 76, 55, 72, 146], [142, 110, 192, 243, 459, 401]],
    "tiny": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]],
    "p6": [
        [19, 27, 44, 40, 38, 94],
        [96, 68, 86, 152, 180, 137],
        [140, 301, 303, 264, 238, 542],
        [436, 615, 739, 380, 925, 792],
    ],
}
# How each tag of the golden files was computed: assigner, matching, the heads whose positives are stored.
TAGS: dict[str, dict[str, Any]] = {
    "plain": {"assigner": "none", "matching": "fixed", "heads": ("plain",)},
    "ota": {"assigner": "none", "matching": "dynamic", "heads": ("ota",)},
    "aux_ota": {"assigner": "coarse_to_fine", "matching": "dynamic", "heads": ("aux_ota_lead", "aux_ota_aux")},
}
CASES = [
    *("p5_basic", "p5_crowd", "p5_empty_image", "p5_nc1", "p5_no_targets", "p5_tiny_border"),
    *("p6_basic", "p6_empty_crowd", "p6_no_targets"),
    "tiny_basic",
]


def anchors_of(family: str) -> Tensor:
    """(levels, anchors, 2) in pixels."""
    table = torch.tensor(ANCHORS[family], dtype=torch.float32)
    return table.view(len(table), -1, 2)


@dataclass(frozen=True)
class GoldenCase:
    """One case and one tag of it."""

    arrays: Any
    meta: dict[str, Any]
    tag: str

    @property
    def predictions(self) -> list[Tensor]:
        kinds = ("pred_lead_", "pred_aux_") if self.tag == "aux_ota" else ("pred_lead_",)
        names = [name for kind in kinds for name in sorted(self.arrays.files) if name.startswith(kind)]
        return [torch.from_numpy(self.arrays[name]) for name in names]

    @property
    def targets(self) -> Tensor:
        return torch.from_numpy(self.arrays["targets"])

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.arrays["image_hw"].tolist()
        return height, width

    def loss(self, **changes: Any) -> DetectionLoss:
        anchors = anchors_of(self.meta["family"])
        settings = {key: TAGS[self.tag][key] for key in ("assigner", "matching")}
        return DetectionLoss(
            anchors=anchors,
            strides=[8 * 2**level for level in range(len(anchors))],
            num_classes=self.meta["nc"],
            hyperparameters=self.meta["hyp"],
            **{**settings, **changes},
        )

    def positives(self) -> list[list[tuple[int, ...]]]:
        """Per level (lead, then auxiliary): image, anchor, row, column and, where stored, the target row; sorted."""
        levels = []
        for head in TAGS[self.tag]["heads"]:
            for level in range(len(ANCHORS[self.meta["family"]])):
                rows = self.arrays[f"{head}/pos_{level}"]
                if f"{head}/target_row_{level}" in self.arrays.files:
                    rows = np.concatenate([rows, self.arrays[f"{head}/target_row_{level}"][:, None]], 1)
                levels.append(sorted(map(tuple, rows.tolist())))
        return levels


def load_case(case: str, tag: str) -> GoldenCase:
    """Read `<case>.npz`."""
    arrays = np.load(GOLDEN / f"{case}.npz")
    return GoldenCase(arrays, json.loads(str(arrays["meta_json"])), tag)
