"""Evaluation: detectors that predict, non-maximum suppression, COCO average precision, reports and comparisons.

Start at `detector.Detector` (predict), `evaluate.evaluate` (a model on a dataset), `bootstrap.paired_bootstrap` (two
detectors on a dataset) and `report.render_report`. The figures are pycocotools' to the last digit.
"""
