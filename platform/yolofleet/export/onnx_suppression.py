"""Suppression as standard ONNX operators, behind a graph that ends in decoded predictions.

`NonMaxSuppression` is greedy within each class and image, so its selection is that of `yolofleet.evaluation.nms` once
the best `max_detections` of all classes are taken: no box beyond that many in its own class can be among them. Its
output, a list of any length, is scattered into one row of scores an image, and `TopK` takes the best of each row.

Limits: `yolofleet.evaluation.nms` compares at most 30,000 candidates of an image; here all enter. The two differ where
an image has more, and fewer than `max_detections` of the best 30,000 are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from yolofleet.export.settings import COUNT_NAME, DECODED_NAME, DETECTIONS_NAME, Thresholds

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PREFIX = "suppression/"
FIRST_CLASS = 5
ALL = np.iinfo(np.int64).max


def add_suppression(model: ModelProto, thresholds: Thresholds, *, num_classes: int) -> ModelProto:
    """Return the model with suppression behind it.

    Args:
        model: Ends in `decoded` (B, boxes, 5 + classes).
        thresholds: Thresholds of suppression.
        num_classes: Classes of the detector.

    Returns:
        A new model that ends in `detections` (B, max_detections, 6) float32: x1, y1, x2, y2 in pixels of the input,
        score, class index, best first, unused rows zero; and `num_detections` (B, 1) int64.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = _Nodes()
    _suppress(nodes, thresholds, num_classes)
    result.graph.node.extend(nodes.nodes)
    batch = result.graph.output[0].type.tensor_type.shape.dim[0]
    first = batch.dim_param or batch.dim_value
    del result.graph.output[:]
    result.graph.output.extend(
        (
            onnx.helper.make_tensor_value_info(
                DETECTIONS_NAME, onnx.TensorProto.FLOAT, [first, thresholds.max_detections, 6]
            ),
            onnx.helper.make_tensor_value_info(COUNT_NAME, onnx.TensorProto.INT64, [first, 1]),
        )
    )
    onnx.checker.check_model(result)
    return result


class _Nodes:
    """Collects nodes, each result under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one result and return the result's name."""
        return self.add_many(operator, inputs, (name or f"{PREFIX}{len(self.nodes)}",), **attributes)[0]

    def add_many(
        self, operator: str, inputs: tuple[str, ...], names: tuple[str, ...], **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several results and return their names."""
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, inputs, names, f"{PREFIX}{operator}_{len(self.nodes)}", **attributes)
        )
        return names

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant."""
        from onnx import numpy_helper

        return self.add("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def columns(self, source: str, start: int, end: int, axis: int = 2) -> str:
        """Cut a span out of an axis."""
        return self.add(
            "Slice", source, self.constant([start]), self.constant([end]), self.constant([axis]), self.constant([1])
        )

    def length(self, source: str, axis: int) -> str:
        """Return how long an axis is, as a vector of one number."""
        return self.add("Shape", source, start=axis, end=axis + 1)


def _suppress(nodes: _Nodes, thresholds: Thresholds, num_classes: int) -> None:
    # 1. Boxes as corners and one score for each class, computed as `yolofleet.evaluation.nms` does.
    corners = _corners(nodes)
    scores = _scores(nodes, num_classes, multi_label=thresholds.multi_label)  # (B, C, N)
    # 2. Greedy suppression; its output is one list over all images and classes.
    selected = nodes.add(  # (K, 3): image, class, box
        "NonMaxSuppression",
        corners,
        scores,
        nodes.constant([thresholds.max_detections]),
        nodes.constant([thresholds.iou], np.float32),
        nodes.constant([thresholds.confidence], np.float32),
    )
    # 3. The best of each image over all classes, as positions in its flat (C x N) scores: class = position // N,
    # box = position % N.
    batch, num_boxes = nodes.length(corners, 0), nodes.length(corners, 1)
    best, positions = _best_of_image(nodes, scores, selected, batch, num_boxes, num_classes, thresholds.max_detections)
    rows = nodes.add(  # (B, max, 4)
        "GatherND",
        corners,
        nodes.add("Unsqueeze", nodes.add("Mod", positions, num_boxes), nodes.constant([2])),
        batch_dims=1,
    )
    classes = nodes.add("Cast", nodes.add("Div", positions, num_boxes), to=1)
    # 4. Rows of score 0 only fill up the fixed number of rows: they are set to zero and not counted.
    is_used = nodes.add("Greater", best, nodes.constant(0.0, np.float32))
    width = nodes.constant([2])
    parts = (rows, nodes.add("Unsqueeze", best, width), nodes.add("Unsqueeze", classes, width))
    used = nodes.add("Unsqueeze", nodes.add("Cast", is_used, to=1), width)
    nodes.add("Mul", nodes.add("Concat", *parts, axis=2), used, name=DETECTIONS_NAME)
    nodes.add("ReduceSum", nodes.add("Cast", is_used, to=7), nodes.constant([1]), keepdims=1, name=COUNT_NAME)


def _corners(nodes: _Nodes) -> str:
    """Centre and size -> x1, y1, x2, y2 (B, N, 4), by the operations of `yolofleet.evaluation.nms`."""
    centre, size = nodes.columns(DECODED_NAME, 0, 2), nodes.columns(DECODED_NAME, 2, 4)
    half = nodes.add("Div", size, nodes.constant(2.0, np.float32))
    return nodes.add("Concat", nodes.add("Sub", centre, half), nodes.add("Add", centre, half), axis=2)


def _scores(nodes: _Nodes, num_classes: int, *, multi_label: bool) -> str:
    """Return the candidates' scores (B, C, N); zero where only a box's best class counts and another is meant."""
    objectness = nodes.columns(DECODED_NAME, FIRST_CLASS - 1, FIRST_CLASS)
    if num_classes == 1:  # trained without a class term: its objectness is the score
        return nodes.add("Transpose", objectness, perm=[0, 2, 1])
    scores = nodes.add("Mul", nodes.columns(DECODED_NAME, FIRST_CLASS, ALL), objectness)
    if not multi_label:
        best = nodes.add("ArgMax", scores, axis=2, keepdims=1)
        is_best = nodes.add("Equal", best, nodes.constant(np.arange(num_classes)))
        scores = nodes.add("Where", is_best, scores, nodes.constant(0.0, np.float32))
    return nodes.add("Transpose", scores, perm=[0, 2, 1])


def _best_of_image(
    nodes: _Nodes, scores: str, selected: str, batch: str, num_boxes: str, num_classes: int, count: int
) -> tuple[str, str]:
    """Return the best scores of each image (B, count) and their positions in its C x N scores; zeros fill up."""
    image, label, box = (nodes.columns(selected, column, column + 1, axis=1) for column in range(3))  # (K, 1)
    position = nodes.add("Add", nodes.add("Mul", label, num_boxes), box)
    length = nodes.add("Add", nodes.add("Mul", num_boxes, nodes.constant([num_classes])), nodes.constant([count]))
    empty = nodes.add("ConstantOfShape", nodes.add("Concat", batch, length, axis=0))  # (B, C x N + count), zeros
    kept = nodes.add(
        "ScatterND", empty, nodes.add("Concat", image, position, axis=1), nodes.add("GatherND", scores, selected)
    )
    names = (f"{PREFIX}best", f"{PREFIX}positions")
    best, positions = nodes.add_many("TopK", (kept, nodes.constant([count])), names, axis=1, largest=1, sorted=1)
    return best, positions
