"""TorchScript and safetensors: the deployed network for programs built on torch, without pickled Python objects."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from yolofleet.evaluation.detector_package import DetectorCard
from yolofleet.export.card import KEY, ExportCard
from yolofleet.export.settings import ExportError
from yolofleet.models import build_model, deploy
from yolofleet.models.network import Network

CARD_NAME = "yolofleet.json"
DETECTOR_KEY = "detector"


def write_torchscript(path: Path, model: Network, card: ExportCard) -> None:
    """Write the traced network; it takes any batch and any size that is a multiple of the largest stride.

    It takes and gives what `Network.forward` does in evaluation mode; the card lies inside as `yolofleet.json`.
    """
    network = deploy(model).eval()
    images = torch.zeros(2, 3, 2 * network.max_stride, 3 * network.max_stride, device=network.anchors.device)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on the check of the image's sides
        traced = torch.jit.trace(network, images, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(traced), str(path), _extra_files={CARD_NAME: json.dumps(card.document())})


def load_torchscript(path: Path) -> nn.Module:
    """Load a traced network; torch's own reader of such archives knows tensors and code of the tracer alone.

    Raises:
        ExportError: it is none.
    """
    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ExportError(f"{path} is no TorchScript file: {str(error).splitlines()[0][:200]}") from error
    return module


def write_safetensors(path: Path, model: Network, card: ExportCard, detector: DetectorCard) -> None:
    """Write the deployed weights in one file, with the block table and classes in its metadata."""
    state: dict[str, Tensor] = {name: tensor.cpu().contiguous() for name, tensor in deploy(model).state_dict().items()}
    described = detector.model_copy(update={"deployed": True})
    metadata = {
        KEY: json.dumps(card.document()),
        DETECTOR_KEY: json.dumps({key: described.document()[key] for key in ("model", "classes")}),
    }
    path.write_bytes(save(state, metadata))


def load_safetensors(path: Path) -> Network:
    """Build the network from such a file alone.

    Raises:
        UserError: the file is damaged, or holds no such network.
    """
    from yolofleet.specs.model import ModelTable

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        document = json.loads(metadata[DETECTOR_KEY])
        table = ModelTable.parse(document["model"], source=str(path))
        model = build_model(table, len(document["classes"]), deployed=True)
        model.load_state_dict(load(path.read_bytes()))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ExportError(f"{path} holds no deployed network: {str(error).splitlines()[0][:200]}") from error
    return model.eval().requires_grad_(False)
