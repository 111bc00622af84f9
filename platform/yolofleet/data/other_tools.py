"""Annotations of tools that are not read: what a file is, and the export to use instead."""

from __future__ import annotations

import re

MOST_BYTES_SEEN = 1 << 20
_COCO_OR_YOLO = "export it as COCO or YOLO, with images"
_CONVERTED = "FiftyOne turns it to COCO: fiftyone convert"
_OTHER_TOOLS = tuple(
    (ending, re.compile(pattern), tool, cure)
    for ending, pattern, tool, cure in (
        (
            ".json",
            rb'"shapes"\s*:',
            "labelme's own file",
            "labelme2coco.py or labelme2voc.py of labelme turns all of them to COCO or VOC",
        ),
        (".json", rb'"_via_|"region_attributes"\s*:', "a VIA project", "export it in VIA as COCO format"),
        (
            ".json",
            rb'"from_name"\s*:|"(?:rectangle|polygon|brush|keypoint)labels"\s*:',
            "a Label Studio export in its own JSON",
            _COCO_OR_YOLO,
        ),
        (".json", rb'"geometryType"\s*:|"classTitle"\s*:', "Supervisely's own format", _COCO_OR_YOLO),
        (".json", rb'"coordinates"\s*:\s*\{', "Apple's CreateML format", _COCO_OR_YOLO),
        (
            ".json",
            rb'"slots"\s*:|"bounding_box"\s*:\s*\{',
            "V7 Darwin's own format",
            "export it from V7 as COCO, or turn it to COCO with darwin-py: darwin convert",
        ),
        (".json", rb'"bounding_box"\s*:|"filepath"\s*:', "FiftyOne's own format", _CONVERTED),
        (".json", rb'"assets?"\s*:\s*\{', "VoTT's own format", "export it from VoTT as Pascal VOC"),
        (".json", rb'"box2d"\s*:', "BDD100K's (Scalabel's) own format", "bdd100k.label.to_coco turns it to COCO"),
        (
            ".json",
            rb'"task_id"\s*:',
            "a list of tasks in Scale's own JSON",
            "write its boxes (left, top, width, height) as COCO",
        ),
        (
            ".json",
            rb'"dm_format_version"|"items"\s*:',
            "Datumaro's own format",
            "datum convert -f coco turns it to COCO",
        ),
        (
            ".json",
            rb'"segments_info"\s*:',
            "a panoptic file",
            "its dataset has a file of instances, which holds boxes",
        ),
        (".json", rb'"caption"\s*:', "a file of captions", "its dataset has a file of instances, which holds boxes"),
        (
            ".json",
            rb'^\s*\[\s*\{[^{}]*"image_id"\s*:',
            "a bare list that looks like detections (a results file)",
            "evaluate reads it; take the annotations instead",
        ),
        (".xml", rb"<annotations>", "CVAT's own XML", "export it from CVAT as COCO 1.0 or YOLO 1.1, with images"),
        (".xml", rb"<dataset>", "dlib's own XML (imglab)", "write its boxes as Pascal VOC or COCO"),
        (
            ".ndjson",
            rb'"data_row"\s*:',
            "a Labelbox export in its own NDJSON",
            "FiftyOne imports Labelbox and exports COCO",
        ),
        (
            ".ndjson",
            rb'"type"\s*:\s*"(?:dataset|image)"',
            "Ultralytics's own NDJSON",
            "convert_ndjson_to_yolo of ultralytics.data.converter turns it to YOLO",
        ),
        (".odgt", rb'"gtboxes"\s*:', "CrowdHuman's own format", "write its boxes (fbox or vbox) as COCO"),
        (
            ".manifest",
            rb'"source-ref"\s*:',
            "a manifest of SageMaker Ground Truth",
            "write its boxes (left, top, width, height) as COCO",
        ),
        (".csv", rb"(?i)ImageID,|filename,|xmin", "boxes in a CSV file", _CONVERTED),
    )
)
ENDINGS_OF_TOOLS = tuple(sorted({ending for ending, *_ in _OTHER_TOOLS}))
"""Endings of the files that `other_tool` knows."""


def other_tool(key: str, data: bytes) -> str | None:
    """Return "is a VIA project, which cannot be read; export ..." of a file of a known tool; None of any other.

    Args:
        key: The file's name; its ending decides which tools are possible.
        data: Its bytes, or its first ones.
    """
    for ending, pattern, tool, cure in _OTHER_TOOLS:
        if key.lower().endswith(ending) and pattern.search(data[:MOST_BYTES_SEEN]):
            return f"is {tool}, which cannot be read; {cure}, then name the result"
    return None
