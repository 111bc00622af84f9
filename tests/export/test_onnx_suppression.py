"""Suppression in ONNX Runtime against our own, on predictions made up and on those of a network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.export.onnx_suppression import add_suppression
from yolofleet.export.prediction_comparison import compare_detections
from yolofleet.export.settings import DECODED_NAME, Thresholds

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def suppressing(num_classes: int, thresholds: Thresholds) -> Any:
    """A session that does nothing but suppress."""
    helper = onnx.helper
    shape = ["batch", "boxes", 5 + num_classes]
    given, decoded = (helper.make_tensor_value_info(name, 1, shape) for name in ("given", DECODED_NAME))
    graph = helper.make_graph([helper.make_node("Identity", ["given"], [DECODED_NAME])], "graph", [given], [decoded])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    whole = add_suppression(model, thresholds, num_classes=num_classes)
    return onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])


def crowd(seed: int, images: int, boxes: int, num_classes: int) -> Tensor:
    """Predictions crowded around a few centres, with scores of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    decoded = torch.rand(images, boxes, 5 + num_classes, generator=generator)
    centres = torch.rand(4, 2, generator=generator) * 300
    decoded[..., :2] = centres[torch.randint(4, (images, boxes), generator=generator)] + decoded[..., :2] * 12
    decoded[..., 2:4] = decoded[..., 2:4] * 40 + 20
    decoded[..., 4] **= 4
    return decoded


@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    boxes=st.sampled_from((1, 30, 400)),
    num_classes=st.sampled_from((1, 3, 20)),
    confidence=st.sampled_from((0.0, 0.001, 0.25, 0.999)),
    iou=st.sampled_from((0.0, 0.45, 0.65)),
    max_detections=st.sampled_from((1, 20, 300)),
    multi_label=st.booleans(),
)
@settings(max_examples=40, derandomize=True)
def test_it_is_our_own_suppression(
    seed: int,
    images: int,
    boxes: int,
    num_classes: int,
    confidence: float,
    iou: float,
    max_detections: int,
    multi_label: bool,
) -> None:
    thresholds = Thresholds(confidence=confidence, iou=iou, max_detections=max_detections, multi_label=multi_label)
    decoded = crowd(seed, images, boxes, num_classes)
    rows, counts = suppressing(num_classes, thresholds).run(None, {"given": decoded.numpy()})
    assert rows.shape == (images, max_detections, 6) and counts.shape == (images, 1)
    found = [torch.from_numpy(row[: int(count)]) for row, count in zip(rows, counts[:, 0], strict=True)]
    expected = non_maximum_suppression(
        decoded, confidence=confidence, iou=iou, max_detections=max_detections, multi_label=multi_label
    )
    comparison = compare_detections(expected, found, full=max_detections)
    assert [len(row) for row in found] == [len(row) for row in expected]
    assert comparison.equal and comparison.box_pixels == comparison.score == 0
    for row, count in zip(rows, counts[:, 0], strict=True):
        assert not row[int(count) :].any()
        assert (row[: int(count), 4][:-1] >= row[: int(count), 4][1:]).all(), "best first"


def test_nothing_is_found_where_nothing_is() -> None:
    thresholds = Thresholds(confidence=0.001, iou=0.65, max_detections=300)
    rows, counts = suppressing(3, thresholds).run(None, {"given": torch.zeros(2, 50, 8).numpy()})
    assert counts.tolist() == [[0], [0]] and not rows.any()


def test_a_difference_is_seen() -> None:
    want = torch.tensor([[0, 0, 10, 10, 0.9, 1], [20, 20, 30, 30, 0.5, 0]], dtype=torch.float32)
    assert compare_detections([want], [want.flip(0)], full=300).equal
    for changed in (want[:1], want + torch.tensor([0, 0, 0, 0, 0, 1.0]), want + torch.tensor([1.0, 0, 0, 0, 0, 0])):
        assert not compare_detections([want], [changed], full=300).equal
