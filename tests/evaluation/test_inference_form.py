"""Half precision and test-time augmentation: another form of the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.letterbox import PADDING_GREY
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.evaluate import evaluate, evaluation_precision
from yolofleet.evaluation.inference_form import SCALES, AugmentedNetwork, half_precision, inference_form


class BrightSpot(nn.Module):
    """Finds the one bright rectangle of an image, to the pixel; it sees nothing else."""

    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        bright = images[:, 0] > 0.7  # the middle of the edge, between the padding's grey and white
        rows, columns = bright.any(2), bright.any(1)  # (B, H), (B, W)
        answers = torch.zeros(len(images), 1, 6)
        for number in range(len(images)):
            y, x = (mask[number].nonzero().flatten().float() for mask in (rows, columns))
            corners = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
            answers[number, 0, :2] = (corners[:2] + corners[2:]) / 2
            answers[number, 0, 2:4] = corners[2:] - corners[:2]
            answers[number, 0, 4:] = 1
        return answers


@given(left=st.integers(0, 200), top=st.integers(0, 100), width=st.integers(12, 50), height=st.integers(12, 50))
def test_every_scale_finds_a_box_where_it_is(left: int, top: int, width: int, height: int) -> None:
    images = torch.full((2, 3, 160, 256), PADDING_GREY / 255)
    images[:, :, top : top + height, left : left + width] = 1
    network = BrightSpot()
    passes = AugmentedNetwork(network)(images)
    assert passes.shape == (2, len(SCALES), 6)
    expected = torch.tensor([left + width / 2, top + height / 2, width, height]).expand(2, 3, 4)
    torch.testing.assert_close(passes[..., :4], expected, rtol=0, atol=2.0)
    torch.testing.assert_close(passes[:, 0, :4], expected[:, 0])
    # 256 x 0.83 = 212.48 and 256 x 0.67 = 171.52, each up to whole strides of 32.
    assert [tuple(seen.shape[2:]) for seen in network.seen] == [(160, 256), (160, 224), (128, 192)]
    for seen in network.seen[1:]:
        torch.testing.assert_close(seen[:, :, -1, -1], torch.full((2, 3), PADDING_GREY / 255))


def test_half_precision_rounds_and_leaves_the_original(package: Path) -> None:
    model = Detector.load(package).model
    kept = {name: weights.clone() for name, weights in model.state_dict().items()}
    half = half_precision(model)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        single, rounded = model(images), half(images.half())
    assert {weights.dtype for weights in half.parameters()} == {torch.float16}
    assert half.anchors.dtype == rounded.dtype == torch.float32
    assert 0 < (single - rounded)[..., :4].abs().max() < 0.5
    assert 0 < (single - rounded)[..., 4:].abs().max() < 5e-3
    assert all(torch.equal(weights, kept[name]) for name, weights in model.state_dict().items())
    assert inference_form(model) is model


def test_half_precision_needs_weights() -> None:
    with pytest.raises(UserError, match="needs the weights in torch"):
        half_precision(BrightSpot())


@pytest.mark.parametrize(
    ("protocol", "device", "precision"),
    [("square", "cuda", "fp32"), ("published", "cuda:1", "fp16"), ("published", "cpu", "fp32")],
)
def test_the_published_protocol_is_in_half_precision_on_a_gpu_alone(protocol: str, device: str, precision: str) -> None:
    assert evaluation_precision(protocol, device) == precision


def test_an_evaluation_with_augmentation_sees_more_boxes(dataset: ShardDataset, package: Path) -> None:
    model = Detector.load(package).model
    plain = evaluate(model, dataset, image_size=96, confidence=1e-3, max_detections=10_000, iou=1.0)
    more = evaluate(model, dataset, image_size=96, confidence=1e-3, max_detections=10_000, iou=1.0, augment=True)
    assert len(more.detections) > 1.5 * len(plain.detections) > 0
    half = evaluate(model, dataset, image_size=96, confidence=1e-3, max_detections=10_000, iou=1.0, precision="fp16")
    assert abs(len(half.detections) - len(plain.detections)) <= 0.02 * len(plain.detections)
    assert half.detections.records() != plain.detections.records()
