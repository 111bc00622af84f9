"""TorchScript and safetensors: the deployed network for programs built on torch, without pickled Python objects."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.core.local_files import open_regular
from yolofleet.core.text import first_line
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import MOST_WEIGHT_BYTES
from yolofleet.export.card import KEY, ExportCard
from yolofleet.export.formats import Request
from yolofleet.export.settings import ExportError
from yolofleet.models import build_model, deploy
from yolofleet.models.network import Network
from yolofleet.models.tensor_file import read_header, tensors_in

CARD_NAME = "yolofleet.json"
DETECTOR_KEY = "detector"


def write_torchscript(path: Path, detector: Detector, _: Request, card: ExportCard) -> Path:
    """Write the traced network; it takes any batch and any size that is a multiple of the largest stride.

    Its input and output are those of `Network.forward` in evaluation mode; the card lies inside as `yolofleet.json`.
    """
    network = deploy(detector.model).eval()
    images = torch.zeros(2, 3, 2 * network.max_stride, 3 * network.max_stride, device=network.anchors.device)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on the check of the image's sides
        traced = torch.jit.trace(network, images, check_trace=False)  # type: ignore[no-untyped-call]
        content = io.BytesIO()  # torch would raise a RuntimeError where a file cannot be written
        torch.jit.save(torch.jit.freeze(traced), content, _extra_files={CARD_NAME: json.dumps(card.document())})
    path.write_bytes(content.getbuffer())
    return path


def load_torchscript(path: Path) -> nn.Module:
    """Load a traced network; torch's reader of such archives builds tensors and traced code only.

    Raises:
        ExportError: It is not a TorchScript file.
    """
    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{path} is not a TorchScript file: {first_line(error)}") from error
    return module


def write_safetensors(path: Path, detector: Detector, _: Request, card: ExportCard) -> Path:
    """Write the deployed weights in one file, with the block table and classes in its metadata."""
    weights = deploy(detector.model).state_dict()
    state: dict[str, Tensor] = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    document = detector.card.document()
    metadata = {
        KEY: json.dumps(card.document()),
        DETECTOR_KEY: json.dumps({key: document[key] for key in ("model", "classes")}),
    }
    path.write_bytes(save(state, metadata))
    return path


def load_safetensors(path: Path) -> Network:
    """Build the network from such a file alone.

    Raises:
        ExportError: The file is damaged, or holds no such network.
    """
    from yolofleet.specs.model import ModelTable

    try:
        with open_regular(path, MOST_WEIGHT_BYTES) as file:
            header = read_header(file)
            document = json.loads(header.metadata[DETECTOR_KEY])
            file.seek(0)
            state = tensors_in(bytearray(file.read()), header)
        table = ModelTable.parse(document["model"], source=str(path))
        model = build_model(table, len(document["classes"]), deployed=True)
        model.load_state_dict(state)
    except (UserError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ExportError(f"{path} holds no deployed network: {first_line(error)}") from error
    return model.eval().requires_grad_(False)
