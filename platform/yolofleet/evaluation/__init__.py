"""Letterboxed inference, NMS, COCO average precision, reports and the detector package."""
