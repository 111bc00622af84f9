"""Objectness maps: every level of every head, in the right place, and a word about heads that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.core.file_names import TRAINING_FORM
from yolofleet.data.letterbox import fit
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.evaluation.objectness import GAP, PANEL, ObjectnessMap, draw_objectness, objectness_maps
from yolofleet.models import build_model, deploy
from yolofleet.models.network import Network
from yolofleet.registry.proof import save_training_form
from yolofleet.specs.model import ModelChoice

Captured = pytest.CaptureFixture[str]
NARROW = {"transition_width": 0.0625, "hidden_width": 0.0625, "depth": 0.5}
SIZE = 128


@pytest.fixture(scope="module")
def model() -> Network:
    """A narrow YOLOv7-W6 in its training form, with random weights."""
    torch.manual_seed(0)
    return build_model(ModelChoice(name="yolov7-w6", **NARROW), 2).eval()


@pytest.fixture(scope="module")
def with_training_form(model: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w6") / "detector"
    save_detector(folder, deploy(model), [(1, "a"), (2, "b")], SIZE)
    save_training_form(folder, model)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "one.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_lead_and_auxiliary_levels_have_maps_and_the_lead_ones_are_the_deployed_forms(model: Network) -> None:
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    maps, box = objectness_maps(model, image, SIZE)
    assert [(entry.head, entry.stride) for entry in maps] == [
        (head, stride) for head in ("lead", "auxiliary") for stride in (8, 16, 32, 64)
    ]
    assert [entry.values.shape for entry in maps[:4]] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert box.resized_width == 128 and box.pad_top > 0
    deployed, _ = objectness_maps(deploy(model), image, SIZE)
    assert len(deployed) == 4
    for one, other in zip(maps, deployed, strict=False):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)
    assert not np.allclose(maps[0].values, maps[4].values)


@given(row=st.integers(1, 6), column=st.integers(0, 7))
def test_a_cell_is_drawn_where_it_lies_in_the_image(row: int, column: int) -> None:
    image = np.full((90, 120, 3), 40, np.uint8)
    _, box = fit((90, 120), (SIZE, SIZE), stride=64, auto=False, scale_up=True)
    values = np.zeros((8, 8), np.float32)
    values[row, column] = 0.25
    drawing = np.asarray(draw_objectness(image, [ObjectnessMap(head="lead", stride=16, values=values)], box))
    factor = PANEL / 120
    left = GAP + PANEL + GAP
    panel = drawing[GAP : GAP + round(90 * factor), left : left + PANEL].astype(int).sum(2)
    ys, xs = np.nonzero(panel > 2 * 3 * 40)
    scale = factor * 120 / box.resized_width
    top, bottom = ((16 * edge - box.pad_top) * scale for edge in (row, row + 1))
    assert xs.min() == pytest.approx(16 * column * scale, abs=2)
    assert xs.max() == pytest.approx(16 * (column + 1) * scale, abs=2)
    assert ys.min() == pytest.approx(max(0, top), abs=3) and ys.max() == pytest.approx(min(270, bottom), abs=3)


def test_predict_draws_all_heads_from_the_training_form(
    with_training_form: Path, photo: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["predict", str(with_training_form), str(photo), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--objectness", str(tmp_path / "maps")]) == 0
    captured = capsys.readouterr()
    assert f"{tmp_path}/maps/one.png: objectness of 8 levels" in captured.out.replace("\n", "")
    assert "auxiliary" not in captured.err
    drawing = Image.open(tmp_path / "maps" / "one.png")
    assert drawing.size[0] > 5 * PANEL and drawing.size[1] > 2 * 270


def test_heads_that_are_not_there_are_named(
    with_training_form: Path, package: Path, photo: Path, tmp_path: Path, capsys: Captured
) -> None:
    deployed = Path(shutil.copytree(with_training_form, tmp_path / "deployed"))
    (deployed / TRAINING_FORM).unlink()
    for detector, words in (
        (deployed, "auxiliary heads exist only in the training form: the maps are those of the lead head"),
        (package, "yolov7-tiny has no auxiliary head: the maps are those of the lead head"),
    ):
        out = ["--out", str(tmp_path / "out"), "--objectness", str(tmp_path / "maps")]
        assert main(["predict", str(detector), str(photo), "--device", "cpu", *out]) == 0
        captured = capsys.readouterr()
        assert words in captured.err.replace("\n", " ")
        assert "objectness of 8 levels" not in captured.out


def test_images_are_not_overwritten_and_workers_do_not_draw(
    with_training_form: Path, photo: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["predict", str(with_training_form), str(photo), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--objectness", str(photo.parent)]) == 2
    assert "would overwrite the image" in capsys.readouterr().err
    assert main([*arguments, "--objectness", str(tmp_path), "--workers", "1"]) == 2
    assert "--workers does not" in capsys.readouterr().err
