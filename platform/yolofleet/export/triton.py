"""A model repository as NVIDIA Triton reads it: NAME/config.pbtxt, NAME/classes.txt, NAME/1/model.onnx.

Where the model takes any batch, Triton joins requests into batches; a model of a fixed input is served as it is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.export.card import ExportCard
from yolofleet.export.settings import DECODED_NAME, DETECTIONS_NAME, ExportError

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

CONFIG_NAME = "config.pbtxt"
CLASSES_NAME = "classes.txt"
MODEL_NAME = "1/model.onnx"
MAX_BATCH_SIZE = 16
"""Images that Triton puts into one batch where any batch is possible."""
QUEUE_MICROSECONDS = 2000
"""How long a request may wait for others."""
_TYPES = {1: "TYPE_FP32", 7: "TYPE_INT64"}


def write_repository(folder: Path, name: str, model: ModelProto, card: ExportCard) -> Path:
    """Write one model into a model repository.

    Args:
        folder: The repository; other models in it are left alone.
        name: The model's name there.
        model: The ONNX model.
        card: Its card.

    Returns:
        The model file.

    Raises:
        ExportError: The name is not possible.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ExportError(f"--name {name}: a model of Triton is named with letters, digits, '_', '-' and '.'")
    target = folder / name / MODEL_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(model.SerializeToString())
    (folder / name / CLASSES_NAME).write_text("".join(f"{entry.name}\n" for entry in card.classes), encoding="utf-8")
    (folder / name / CONFIG_NAME).write_text(config_text(name, model, card), encoding="utf-8")
    return target


def config_text(name: str, model: ModelProto, card: ExportCard) -> str:
    """Return the text of config.pbtxt, its tensors as the model declares them."""
    max_batch_size = MAX_BATCH_SIZE if card.dynamic else 0
    lines = [f"name: {json.dumps(name)}", 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch_size}"]
    for field, values in (("input", model.graph.input), ("output", model.graph.output)):
        parts = ",\n".join(_tensor(value, without_batch=bool(max_batch_size)) for value in values)
        lines.append(f"{field} [\n{parts}\n]")
    if max_batch_size:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    return "\n".join(lines) + "\n"


def _tensor(value: ValueInfoProto, *, without_batch: bool) -> str:
    kind = value.type.tensor_type
    dims = [-1 if dim.dim_param else dim.dim_value for dim in kind.shape.dim][1 if without_batch else 0 :]
    labels = f", label_filename: {json.dumps(CLASSES_NAME)}" if value.name in (DECODED_NAME, DETECTIONS_NAME) else ""
    sizes = ", ".join(str(dim) for dim in dims)
    return f"  {{ name: {json.dumps(value.name)}, data_type: {_TYPES[kind.elem_type]}, dims: [ {sizes} ]{labels} }}"
