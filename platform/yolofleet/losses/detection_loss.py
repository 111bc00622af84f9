"""The loss of a micro-batch: assignment, box, objectness and class terms.

One call costs little beside the network: the candidates are searched without reading predictions, matched in tables,
and the only pass over all cells is the objectness term. Nothing in it makes the host wait for a device; with the
targets left in host memory the tables on the device are as small as they can be.

Half-precision predictions are read in float32, and the loss is computed outside autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yolofleet.core.text import plural
from yolofleet.losses.assigners import Assignment, LabelAssigner, Scene, load_assigner
from yolofleet.losses.boxes import Boxes, read_boxes
from yolofleet.losses.levels import (
    FIRST_CLASS,
    OBJECTNESS,
    AnchorTable,
    choose_dtype,
    make_levels,
    read_predictions,
    send,
)
from yolofleet.losses.terms import (
    MATCHINGS,
    LossSettings,
    Matching,
    cap_coarse_cells,
    compute_box_fit,
    compute_box_term,
    compute_class_term,
    compute_level_weights,
    compute_objectness_term,
    level_balance,
)
from yolofleet.specs.assignment import ASSIGNERS

AUXILIARY_WEIGHT = 0.25  # of every auxiliary term, as published


@dataclass(frozen=True)
class LossResult:
    """The loss of one micro-batch, scalars on the predictions' device.

    Attributes:
        total: (box + objectness + classification) x micro-batch size, the published scale, with gradient. Summed over
            the micro-batches of a step it does not depend on how they are spread over workers.
        box, objectness, classification: The terms with their gains, without gradient.
        num_positives: Positives of the lead head.
    """

    total: Tensor
    box: Tensor
    objectness: Tensor
    classification: Tensor
    num_positives: Tensor


class DetectionLoss:
    """YOLOv7's detection loss with its label assigners.

    Args:
        anchors: (levels, anchors, 2) width and height in pixels; a tensor, an array or nested sequences.
        strides: Pixels a cell, one a level.
        num_classes: Classes of the detector.
        hyperparameters: `box`, `cls`, `obj` (gains, already scaled: `yolofleet.losses.scaled_gains`), `cls_pw`,
            `obj_pw`, `fl_gamma`, `anchor_t`, `label_smoothing`.
        assigner: `none` (no auxiliary head), `independent`, `lead`, `coarse_to_fine` (section 4.2, Table 6), or a name
            that `register_assigner` added.
        matching: `dynamic` (SimOTA) or `fixed` (every candidate is a positive).
        constraint: Cap the objectness target of cells that only the coarse set holds (Table 7); it has nothing to
            act on with an assigner without coarse set. Off in the published recipes.
        published_quirks: Reproduce the published implementation where it is wrong: boxes scaled by the image's height
            alone, NaN costs where scores saturate, boxes without an area.
        auxiliary_weight: Factor of every auxiliary term.
        relaxation: How close to a neighbouring cell a box's centre must be for the coarse set, in cells: 0.5 is the
            fine set, 1.0 the published coarse set.
        class_weights: (classes,) factor of the class term for the positives of each class.

    Raises:
        ValueError: A setting is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        anchors: Any,
        strides: Sequence[int],
        num_classes: int,
        hyperparameters: Mapping[str, float],
        assigner: str = "none",
        matching: Matching = "dynamic",
        constraint: bool = False,
        published_quirks: bool = False,
        auxiliary_weight: float = AUXILIARY_WEIGHT,
        relaxation: float = 1.0,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        if matching not in MATCHINGS:
            raise ValueError(f"matching is {matching!r}; it must be one of {', '.join(MATCHINGS)}")
        if not 0.0 < relaxation <= 1.0:
            raise ValueError(f"relaxation is {relaxation}; it must be above 0 and at most 1 cell")
        if not (math.isfinite(auxiliary_weight) and auxiliary_weight >= 0.0):
            raise ValueError(f"auxiliary_weight is {auxiliary_weight}; it must be 0 or more")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be 1 or more")
        self.settings = LossSettings.from_hyperparameters(hyperparameters)
        self.num_classes = num_classes
        self.strides = tuple(int(stride) for stride in strides)
        if min(self.strides, default=0) < 1:
            raise ValueError(f"strides are {list(strides)}; they must be pixels, 1 or more, one a level")
        self.anchors = _read_anchors(anchors, len(self.strides))
        self.balance = level_balance(len(self.strides))
        self.constraint = constraint
        self.auxiliary_weight = auxiliary_weight
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights, device="cpu")
        if self.class_weights is not None:
            if self.class_weights.shape != (num_classes,):
                raise ValueError(f"class_weights has shape {tuple(self.class_weights.shape)}, not ({num_classes},)")
            if not bool((self.class_weights >= 0).all() & self.class_weights.isfinite().all()):
                raise ValueError(f"class_weights are {self.class_weights.tolist()}; they must be numbers of 0 or more")
        self.assigner = assigner
        registered = ASSIGNERS.get(assigner)
        self._compiled: Callable[[Scene, Tensor | None], LossResult] | None = None
        self.label_assigner = LabelAssigner(
            function=load_assigner(registered),
            registered=registered,
            matching=matching,
            relaxation=relaxation,
            ratio_limit=self.settings.anchor_ratio_limit,
            published_quirks=published_quirks,
        )

    def __call__(self, predictions: Sequence[Tensor], targets: Tensor, image_size: tuple[int, int]) -> LossResult:
        """Compute the loss of a micro-batch.

        Args:
            predictions: Raw predictions (B, A, H, W, 5 + C) of the lead levels, then of the auxiliary levels. With
                the assigner `none`, auxiliary levels are not read.
            targets: (N, 6) image index, class index, cx, cy, w, h as shares of the image; best left in host memory.
            image_size: Height and width in pixels.

        Raises:
            ValueError: Shapes that do not fit, an index out of range, or no auxiliary levels for an assigner that
                needs them.
        """
        if len(predictions) == 0 or len(predictions[0]) == 0:
            raise ValueError("there is nothing to learn from: no levels were predicted, or for no images")
        with torch.autocast(predictions[0].device.type, enabled=False):
            scene = self._make_scene(predictions, targets, image_size)
            weights = self.class_weights
            if weights is not None:
                weights = send(weights.to(choose_dtype(predictions)), predictions[0].device)
            if self._compiled is not None and (padded := scene.padded()) is not None:
                return self._compiled(padded, weights)
            return self._compute(scene, weights)

    def compile(self, **options: Any) -> None:
        """Let torch compile the loss, as one graph for each of a few numbers of boxes an image.

        Boxes are padded to a power of two an image (`Boxes.padded`). Micro-batches with more than 256 boxes on an image
        are computed as before.

        Args:
            options: Those of ``torch.compile``.
        """
        self._compiled = torch.compile(self._compute, fullgraph=True, **options)

    def assign(self, predictions: Sequence[Tensor], targets: Tensor, image_size: tuple[int, int]) -> list[Tensor]:
        """Return the positives behind the loss, to check or to draw; arguments as for the loss.

        Returns:
            For each level, lead then auxiliary, (k, 5) int64: image, anchor, row, column, target row.
        """
        boxes, found = self.match(predictions, targets, image_size)
        rows = send(boxes.row, predictions[0].device)
        num_anchors = len(self.anchors[0])
        tables = []
        for head in (found.lead, found.auxiliary):
            if head is not None:
                columns = (head.image, head.prior % num_anchors, head.row, head.column, rows[head.box])
                parts = torch.split(torch.stack(columns, 1), list(head.level_sizes))
                valid = torch.split(head.valid, list(head.level_sizes))
                tables += [part[marked] for part, marked in zip(parts, valid, strict=True)]
        return tables

    def match(
        self, predictions: Sequence[Tensor], targets: Tensor, image_size: tuple[int, int]
    ) -> tuple[Boxes, Assignment]:
        """Return the boxes in order and their positives as the loss uses them; arguments as for the loss."""
        scene = self._make_scene(predictions, targets, image_size)
        return scene.boxes, self.label_assigner.assign(scene)

    def _compute(self, scene: Scene, class_weights: Tensor | None) -> LossResult:
        # 1. Assign: which cells of which head are positives.
        found = self.label_assigner.assign(scene)
        levels, used = scene.levels, [*scene.lead, *scene.auxiliary]
        boxes = scene.boxes.to(used[0].device)
        heads = [1.0] * len(scene.lead) + [self.auxiliary_weight] * len(scene.auxiliary)
        positives = found.lead if found.auxiliary is None else found.lead.join(found.auxiliary, levels.starts[-1])
        rows, objectness = read_predictions(used, positives.cell, positives.level_sizes)
        weights = compute_level_weights(positives, heads, rows.dtype)

        # 2. Box term. Its quality is the objectness target, which the constraint caps in coarse cells.
        fit = compute_box_fit(rows, positives, boxes, levels)
        target = fit.quality.detach().clamp(min=0.0)
        if self.constraint and found.auxiliary is not None and self.label_assigner.registered.has_coarse_set:
            caps = cap_coarse_cells(found.lead, found.auxiliary, boxes, levels)
            target = torch.minimum(target, torch.cat([torch.ones_like(target[: len(found.lead)]), caps]))
        box = self.settings.box_gain * compute_box_term(fit.quality, weights)

        # 3. Objectness term, over all cells.
        level_cells = [level.shape[:4].numel() for level in used]
        factors = [balance * head for balance, head in zip(self.balance * 2, heads, strict=False)]
        objectness_loss = self.settings.objectness_gain * compute_objectness_term(
            objectness, rows[:, OBJECTNESS], target, positives, level_cells, factors, self.settings
        )

        # 4. Class term, over the positives.
        classification = self.settings.class_gain * compute_class_term(
            rows[:, FIRST_CLASS:], boxes.label[positives.box], weights, self.settings, class_weights
        )
        return LossResult(
            total=(box + objectness_loss + classification) * used[0].shape[0],
            box=box.detach(),
            objectness=objectness_loss.detach(),
            classification=classification.detach(),
            num_positives=found.lead.valid.sum(),
        )

    def _make_scene(self, predictions: Sequence[Tensor], targets: Tensor, image_size: tuple[int, int]) -> Scene:
        """Check predictions and targets against each other and describe the micro-batch to an assigner."""
        num_levels, uses_auxiliary = len(self.strides), self.label_assigner.registered.uses_auxiliary
        if len(predictions) not in (num_levels, 2 * num_levels):
            raise ValueError(f"{plural(len(predictions), 'level')} predicted; expected: {num_levels}, or twice that")
        if uses_auxiliary and len(predictions) == num_levels:
            raise ValueError(
                f"assigner {self.assigner!r} needs auxiliary levels, but predicted is only "
                f"{plural(num_levels, 'lead level')}; use assigner 'none', or a detector with auxiliary head in its "
                "training form"
            )
        used = list(predictions[: 2 * num_levels if uses_auxiliary else num_levels])
        num_images, num_anchors = used[0].shape[0], len(self.anchors[0])
        grids = tuple((int(image_size[0]) // stride, int(image_size[1]) // stride) for stride in self.strides)
        for index, level in enumerate(used):
            expected = (num_images, num_anchors, *grids[index % num_levels], 5 + self.num_classes)
            if tuple(level.shape) != expected:
                raise ValueError(
                    f"level {index} is {tuple(level.shape)}; {expected} is expected at {tuple(image_size)}"
                )
        dtype, quirks = choose_dtype(used), self.label_assigner.published_quirks
        boxes = read_boxes(targets, num_images, self.num_classes, dtype, keep_degenerate=quirks)
        box_levels, levels = (
            make_levels(self.anchors, self.strides, grids, num_images, device, dtype)
            for device in (targets.device, used[0].device)
        )
        return Scene(self.label_assigner, used[:num_levels], used[num_levels:], boxes, box_levels, levels)


def _read_anchors(anchors: Any, num_levels: int) -> AnchorTable:
    table = torch.as_tensor(anchors, dtype=torch.float64, device="cpu")
    are_sizes = bool(((table > 0) & table.isfinite()).all())
    if table.ndim != 3 or table.shape[0] != num_levels or table.shape[2] != 2 or not are_sizes:
        raise ValueError(
            f"anchors must be positive pixels of shape (levels, anchors, 2) with {plural(num_levels, 'level')}, "
            f"not {tuple(table.shape)}"
        )
    return tuple(tuple((width, height) for width, height in level) for level in table.tolist())
