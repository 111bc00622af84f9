"""The step that `gpu.py` compares with: what a training script without further work on speed does.

Eager fp16 autocast with a gradient scaler, which makes the host wait once a step; channels first; the loss image by
image and box by box (`looped_matching.py`), under autocast; torch's optimiser as it comes; the average entry by entry.
Candidates are searched by the package, which is faster than what a script does: that part is in favour of the baseline.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_step import NUM_CLASSES, Case
from looped_matching import looped_matching
from yolofleet.losses import scaled_gains
from yolofleet.losses.boxes import complete_iou, read_boxes
from yolofleet.losses.candidates import search_candidates
from yolofleet.losses.levels import make_levels
from yolofleet.losses.terms import level_balance
from yolofleet.models import build_model
from yolofleet.training.loop.update import group_parameters

AVERAGE_DECAY = 0.9999
FINE_REACH, COARSE_REACH = 0.5, 1.0
AUXILIARY_WEIGHT = 0.25


class BaselineStep:
    """A step of the baseline over one batch."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self._device = device
        self._image_size = case.image_size
        self._model = build_model(case.model, NUM_CLASSES).to(device).train()
        self._average = copy.deepcopy(self._model).eval()
        hyperparameters = case.job().resolved_hyperparameters()
        groups = [{"params": [parameter for _, parameter in found]} for found in group_parameters(self._model).values()]
        self._optimizer = torch.optim.SGD(groups, lr=hyperparameters.lr0, momentum=0.937, nesterov=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self._half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self._gains = scaled_gains(hyperparameters.document(), NUM_CLASSES, len(self._model.strides), case.image_size)
        batch = case.batch(device)
        self._pixels, self._targets = batch.images, batch.targets

    def __call__(self) -> None:
        """Do a step."""
        with torch.autocast(self._device.type, dtype=self._half):
            images = self._pixels.to(self._device, non_blocking=True).float() / 255
            predictions = self._model(images)
            loss = self._loss(predictions)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        with torch.no_grad():
            source = self._model.state_dict()
            for name, value in self._average.state_dict().items():
                if value.dtype.is_floating_point:
                    value *= AVERAGE_DECAY
                    value += (1 - AVERAGE_DECAY) * source[name].detach()

    def _loss(self, predictions: Sequence[Tensor]) -> Tensor:
        num_levels = len(self._model.strides)
        lead, auxiliary = predictions[:num_levels], predictions[num_levels:]
        total = self._head_loss(lead, lead, FINE_REACH)
        if auxiliary:
            total = total + AUXILIARY_WEIGHT * self._head_loss(lead, auxiliary, COARSE_REACH)
        return total * predictions[0].shape[0]

    def _candidates(self, lead: Sequence[Tensor], reach: float) -> list[Tensor]:
        """Return (n, 4) image, anchor, row and column of each level, found on the host."""
        anchors = self._model.anchors.cpu()
        table = tuple(tuple((float(width), float(height)) for width, height in level) for level in anchors.tolist())
        grids = tuple((level.shape[2], level.shape[3]) for level in lead)
        num_images = lead[0].shape[0]
        levels = make_levels(table, tuple(self._model.strides), grids, num_images, torch.device("cpu"), torch.float32)
        boxes = read_boxes(self._targets, num_images, NUM_CLASSES, torch.float32, keep_degenerate=False)
        found = search_candidates(boxes, levels, reach=reach, ratio_limit=self._gains["anchor_t"])
        columns = torch.stack([found.image, found.prior % anchors.shape[1], found.row, found.column], 1)
        return [part.to(self._device) for part in torch.split(columns, list(found.level_sizes))]

    def _head_loss(self, guide: Sequence[Tensor], head: Sequence[Tensor], reach: float) -> Tensor:
        """Match a head's cells by the guide's predictions, and sum the three terms over its levels."""
        targets, strides, size = self._targets.to(self._device), self._model.strides, self._image_size
        anchors = list(self._model.anchors)
        with torch.no_grad():
            matched = looped_matching(guide, targets, self._candidates(guide, reach), anchors, strides, size)
        box, objectness, classes = (torch.zeros((), device=self._device) for _ in range(3))
        levels = zip(head, matched, anchors, strides, level_balance(len(strides)), strict=True)
        for prediction, places, anchor_sizes, stride, balance in levels:
            image, anchor, row, column, target = places.unbind(1)
            wanted = torch.zeros_like(prediction[..., 0])
            if len(places):
                raw, truth = prediction[image, anchor, row, column], targets[target]
                centre = raw[:, :2].sigmoid() * 2 - 0.5 + torch.stack([column, row], 1)
                extent = (raw[:, 2:4].sigmoid() * 2) ** 2 * anchor_sizes[anchor] / stride
                fit = complete_iou(torch.cat([centre, extent], 1).float(), truth[:, 2:] * (size / stride)).quality
                box = box + (1 - fit).mean()
                wanted[image, anchor, row, column] = fit.detach().clamp(0).type(wanted.dtype)
                one_hot = F.one_hot(truth[:, 1].long(), NUM_CLASSES).type(raw.dtype)
                classes = classes + F.binary_cross_entropy_with_logits(raw[:, 5:], one_hot)
            objectness = objectness + balance * F.binary_cross_entropy_with_logits(prediction[..., 4], wanted)
        gains = self._gains
        return gains["box"] * box + gains["obj"] * objectness + gains["cls"] * classes
