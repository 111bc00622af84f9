"""The published models' weights by their fill rule, and samples of their outputs (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
ANCHOR_KINDS = ("anchors", "anchor_grid")
NUM_SAMPLES = 2000
SAMPLING_SEED = 2000


def counts() -> dict[str, dict[str, Any]]:
    """Parameters and GFLOPs of every model, training and deployed."""
    return json.loads((GOLDEN / "counts.json").read_text())


def tensors_of(name: str) -> list[list[Any]]:
    """The published state dict of a model as rows [index, name, kind, shape]."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        rows: list[list[Any]] = json.loads(file["tensors"].tobytes())
    return rows


def sampled_positions(num_values: int) -> Tensor:
    """The positions of a flattened output that are kept: all of them, or 2,000 drawn ones."""
    if num_values <= NUM_SAMPLES:
        return torch.arange(num_values)
    draw = np.random.default_rng(SAMPLING_SEED)
    return torch.from_numpy(draw.choice(num_values, NUM_SAMPLES, replace=False))


def filled_state_dict(tensors: list[list[Any]], gain: float) -> dict[str, Tensor]:
    """Draw the golden weights: entry number i of the state dict from numpy's default_rng(1000 + i)."""
    return {
        name: _filled(kind, shape, gain, np.random.default_rng(1000 + index))
        for index, name, kind, shape in tensors
        if kind not in ANCHOR_KINDS
    }


def _filled(kind: str, shape: list[int], gain: float, draw: np.random.Generator) -> Tensor:
    if kind == "bn_count":
        return torch.tensor(0)
    if kind in ("conv_weight", "det_weight"):
        values = draw.standard_normal(shape) * (gain if kind == "conv_weight" else 1) / np.sqrt(np.prod(shape[1:]))
    elif kind in ("bn_weight", "bn_var"):
        values = draw.uniform(*((0.8, 1.2) if kind == "bn_weight" else (0.6, 1.4)), shape)
    else:
        scale = {"det_bias": 0.5, "bn_bias": 0.3, "bn_mean": 0.1, "implicit_add": 0.1, "implicit_mul": 0.1}[kind]
        values = draw.standard_normal(shape) * scale + (1 if kind == "implicit_mul" else 0)
    return torch.from_numpy(np.asarray(values).astype(np.float32))


class Golden:
    """One published model: its weights, an input, and sampled outputs."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDEN / f"{name}.npz") as file:
            self._arrays = {key: file[key] for key in file.files}
        self.tensors = tensors_of(name)
        self.state = filled_state_dict(self.tensors, float(self._arrays["gain"]))
        shape = self._arrays["input_shape"]
        self.images = torch.from_numpy(np.random.default_rng(7).random(shape).astype(np.float32))

    @property
    def parameters_sum(self) -> float:
        """The sum of all parameters, as published."""
        return float(self._arrays["parameters_sum"])

    def error(self, key: str, found: Tensor) -> float:
        """Return the largest error of an output.

        Each sampled value counts as a share of the published tensor's range, the sum of all values as a share of the
        sum of their magnitudes.
        """
        arrays = self._arrays
        want = torch.from_numpy(arrays[f"{key}__value"])
        values = found.reshape(tuple(arrays[f"{key}__shape"])).flatten()
        sampled = (values[sampled_positions(len(values))] - want).abs().max() / arrays[f"{key}__range"]
        total = abs(values.double().sum() - arrays[f"{key}__sum"]) / arrays[f"{key}__magnitude"]
        return max(float(sampled), float(total))

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of an output."""
        return tuple(self._arrays[f"{key}__shape"].tolist())
