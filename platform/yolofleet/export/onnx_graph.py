"""A detector as an ONNX graph: images in, decoded predictions out, standard operators only.

The graph is traced from the deployed network by torch's exporter. It holds its weights itself (no second file), so a
model is one file of at most 2 GB: three times the largest of the family.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from yolofleet.export.settings import DECODED_NAME, INPUT_NAME, InputShape, check_shape, require_packages
from yolofleet.models import deploy
from yolofleet.models.network import Network

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
MOST_IMAGES = 4096
LONGEST_SIDE = 16384


def network_to_onnx(model: Network, shape: InputShape) -> ModelProto:
    """Return the deployed form of a detector as an ONNX model.

    Args:
        model: The detector; a training form is deployed first.
        shape: The input.

    Returns:
        The graph from `images` (B, 3, H, W) float32 in 0..1 to `decoded` (B, boxes, 5 + classes), as
        `Network.forward` gives them in evaluation mode.

    Raises:
        ExportError: The input does not fit the model, or a package of the extra `export` is missing.
    """
    require_packages("onnx", "onnxscript")
    check_shape(shape, model.max_stride)
    network = deploy(model).eval()
    # A traced size of 1 would be taken for a constant: a graph for any batch and size is traced with two of each.
    batch = max(2, shape.batch) if shape.dynamic else shape.batch
    side = max(2 * model.max_stride, shape.image_size) if shape.dynamic else shape.image_size
    images = torch.zeros(batch, 3, side, side, device=model.anchors.device)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (images,),
            None,
            input_names=[INPUT_NAME],
            output_names=[DECODED_NAME],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=_any_shape(model.max_stride) if shape.dynamic else None,
        )
    assert program is not None
    proto: ModelProto = program.model_proto
    _name_dimensions(proto, shape)
    return proto


def _any_shape(stride: int) -> dict[str, dict[int, Any]]:
    """Return the free dimensions of the input: the batch, and height and width in whole strides."""
    dim = torch.export.Dim
    most = LONGEST_SIDE // stride
    rows, columns = dim("rows", min=1, max=most), dim("columns", min=1, max=most)
    return {INPUT_NAME: {0: dim("batch", min=1, max=MOST_IMAGES), 2: stride * rows, 3: stride * columns}}


def _name_dimensions(model: ModelProto, shape: InputShape) -> None:
    """Give free dimensions names that a reader understands, in place of the exporter's formulas."""
    if not shape.dynamic:
        return
    inputs, outputs = model.graph.input[0], model.graph.output[0]
    for value, names in ((inputs, {0: "batch", 2: "height", 3: "width"}), (outputs, {0: "batch", 1: "boxes"})):
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's notes on its own workings from the user; its errors are exceptions."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
