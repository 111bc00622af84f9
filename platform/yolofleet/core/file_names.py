"""Names of files and of environment variables, and thresholds, that several rooms agree on."""

from __future__ import annotations

MANIFEST_NAME = "manifest.json"
"""A dataset of shards: written last, so a dataset without it is not whole."""
DETECTOR_CARD_NAME = "detector.json"
"""A detector package: classes, thresholds, digests."""
TRAINING_FORM = "training.safetensors"
"""File of a detector package that holds its weights in the form that can be trained further."""
EVALUATION_CONFIDENCE = 0.001
"""Lowest confidence of a detection that is evaluated (published protocol)."""
EVALUATION_IOU = 0.65
"""IoU above which NMS drops a box in an evaluation (published protocol)."""
EVALUATION_MAX_DETECTIONS = 300
"""Most detections of an image that NMS returns in an evaluation."""
SHARD_CACHE_VARIABLE = "YOLOFLEET_SHARD_CACHE"
"""A node's own folder for its shard cache, in place of the job's ``data.cache.path``."""
SHARD_CACHE_BYTES_VARIABLE = "YOLOFLEET_SHARD_CACHE_BYTES"
"""The most bytes that the shard cache may have on this node, where the job's ``data.cache.max_bytes`` is more."""
NODE_GROUPS_VARIABLE = "YOLOFLEET_NODE_GROUPS"
"""The groups of nodes that the cluster's autoscaler may start, as JSON: ``available_node_types`` of Ray's launcher."""
