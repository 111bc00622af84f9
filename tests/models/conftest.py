from __future__ import annotations

import pytest
import torch

from yolofleet.models import build_model
from yolofleet.models.network import Network
from yolofleet.specs.model import ModelChoice


def randomised(model: Network, seed: int = 0) -> Network:
    """Give a model statistics and scales that are not neutral, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.6, 1.4, generator=draw)
            elif name.endswith("running_mean") or (tensor.dim() == 1 and name.endswith("bias")):
                tensor.normal_(0, 0.1, generator=draw)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.uniform_(0.8, 1.2, generator=draw)
    return model


@pytest.fixture
def narrow_tiny() -> Network:
    """yolov7-tiny at half the width, with three classes."""
    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.5, hidden_width=0.5)
    return randomised(build_model(choice, num_classes=3))


@pytest.fixture
def narrow_e6e() -> Network:
    """A small yolov7-e6e with three classes: two groups a block, auxiliary heads."""
    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-e6e", depth=0.34, transition_width=0.125, hidden_width=0.125)
    return randomised(build_model(choice, num_classes=3))
