"""Names of files and thresholds that several rooms agree on."""

from __future__ import annotations

MANIFEST_NAME = "manifest.json"
"""A dataset of shards: written last, so a dataset without it is not whole."""
DETECTOR_CARD_NAME = "detector.json"
"""A detector package: classes, thresholds, digests."""
EVALUATION_CONFIDENCE = 0.001
"""Lowest confidence of a detection that is evaluated (published protocol)."""
EVALUATION_IOU = 0.65
"""IoU above which NMS drops a box in an evaluation (published protocol)."""
EVALUATION_MAX_DETECTIONS = 300
"""Most detections of an image that NMS returns in an evaluation."""
