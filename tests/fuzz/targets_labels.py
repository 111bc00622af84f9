"""Targets: labels of foreign datasets (COCO, YOLO, VOC) and foreign tar shards."""

from __future__ import annotations

import contextlib

from yolofleet.core.errors import UserError
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog


def fuzz_coco(data: bytes) -> None:
    """A COCO annotation file."""
    with contextlib.suppress(UserError):
        parse_coco(data, "instances.json", ProblemLog())
