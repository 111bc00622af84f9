"""Distributed training platform for the YOLOv7 family of object detectors."""

__version__ = "0.1.0"
