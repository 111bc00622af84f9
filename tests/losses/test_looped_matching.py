"""The peer of the benchmark does the work that it is measured for: it finds the same positives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from losses.golden_loss import anchors_of
from losses.scenes import STRIDES, make_loss, make_predictions, make_targets, positives

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "looped_matching.py"


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_same_positives(seed: int) -> None:
    spec = importlib.util.spec_from_file_location("looped_matching_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    predictions, targets = make_predictions(seed, 4, (160, 160)), make_targets(seed, 6, 3)  # one image without boxes
    every = make_loss(matching="fixed").assign(predictions, targets, (160, 160))
    found = peer.looped_matching(
        predictions, targets, [level[:, :4] for level in every], list(anchors_of("p5")), STRIDES, 160
    )
    wanted = [sorted(level) for level in positives(make_loss(), predictions, targets, (160, 160))]
    assert [sorted(map(tuple, level.tolist())) for level in found] == wanted
    assert torch.cat(found).shape[0] > 0
