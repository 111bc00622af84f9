"""Detector packages that a stranger wrote: refused in one line, at once, before anything is allocated for them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from memory import bounded
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector_package import read_package, save_detector
from yolofleet.models import build_model
from yolofleet.models.wiring import wire
from yolofleet.specs.model import ModelTable

ROWS: list[dict[str, Any]] = [
    {"block": "conv", "out": 8, "stride": 2},
    {"block": "conv", "out": 8, "stride": 2},
    {"name": "p", "block": "conv", "out": 8, "stride": 2},
]
TABLE: dict[str, Any] = {
    "name": "m", "image_size": 64, "activation": "silu", "blocks": ROWS, "head": {"from": ["p"]},
    "anchors": [[10, 13, 16, 30, 33, 23]],
}  # fmt: skip
FILES = ("detector.json", "model.safetensors", "model.onnx", "training.safetensors")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(ModelTable.parse(TABLE, source="test"), 2).eval()
    return save_detector(tmp_path_factory.mktemp("good") / "detector", model, [(0, "a"), (1, "b")], 64)


def changed(package: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Return a copy whose card is changed."""
    copy = shutil.copytree(package, folder / "detector")
    card = json.loads((copy / "detector.json").read_text())
    change(card)
    (copy / "detector.json").write_text(json.dumps(card))
    return copy


def with_weights(package: Path, folder: Path, data: bytes) -> Path:
    copy = changed(package, folder, lambda card: card.update(weights_sha256=hashlib.sha256(data).hexdigest()))
    (copy / "model.safetensors").write_bytes(data)
    return copy


def refused(folder: Path, match: str) -> None:
    with bounded(), pytest.raises(UserError, match=match) as caught:
        read_package(folder)
    message = str(caught.value)
    assert all(str(folder) in line and line.isprintable() for line in message.splitlines()), message


def rows(*others: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda card: card["model"].update(blocks=[*others, *ROWS])


CARDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "wide": (rows(*[{"block": "conv", "out": 65536}] * 2), "38,6.* weights, more than"),
    "50,000 rows": (rows(*[{"block": "reorg"}] * 50_000), "model.blocks"),
    "many layers": (rows({"block": "conv", "out": 8}, *[{"block": "dark", "out": 8, "stack": 256}] * 100), "layers"),
    "a stride of 2**100": (rows(*[{"block": "conv", "out": 1, "stride": 2}] * 100), "stride"),
    "channels that double": (
        rows(*[{"block": "reorg"}] * 12), "channels at stride"
    ),
    "20,000 classes": (
        lambda card: card.update(classes=[{"id": index, "name": "a"} for index in range(20_000)]), "classes"
    ),
    "a class of 2**70": (lambda card: card.update(classes=[{"id": 2**70, "name": "a"}] * 2), "classes.0.id"),
    "a thousand anchors": (
        lambda card: card["model"].update(anchors=[[1.0, 1.0] * 100_000]), "anchors.0"
    ),
    "an anchor of 1e300": (lambda card: card["model"].update(anchors=[[1e300, 1.0]]), "anchors"),
    "another width": (lambda card: card["model"]["blocks"][1].update(out=16), "of another shape"),
    "a row more": (rows({"block": "conv", "out": 3}), "missing"),
    "a class more": (lambda card: card["classes"].append({"id": 2, "name": "c"}), "of another shape"),
    "deployed": (lambda card: card.update(deployed=True), "missing"),
    "a cycle": (lambda card: card["model"]["blocks"][1].update({"from": ["p"]}), "later|cycle"),
    "a size of no stride": (lambda card: card.update(image_size=68), "not a multiple"),
    "100,000 lists": (lambda card: card.update(model=[[]] * 100_000), "model"),
    "too large": (lambda card: card.update(model="a" * 5_000_000), "more than the"),
    "no model": (lambda card: card.update(model=[]), "model"),
    "a digest that is none": (lambda card: card.update(weights_sha256="../x"), "weights_sha256"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CARDS)
def test_a_hostile_card_is_refused(kind: str, package: Path, tmp_path: Path) -> None:
    change, match = CARDS[kind]
    refused(changed(package, tmp_path, change), match)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "1", "[" * 100_000, '{"format": 1' + "0" * 5000 + "}", '{"a": NaN}', '{"a": "\\ud800"}']
)
def test_a_card_that_is_none_is_refused(text: str, package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "detector")
    (copy / "detector.json").write_text(text)
    refused(copy, r"detector\.json")


def test_hostile_weights_are_refused(package: Path, tmp_path: Path) -> None:
    good = (package / "model.safetensors").read_bytes()
    huge = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    header = json.dumps(huge).encode()
    for number, (data, match) in enumerate({
        b"": "not a safetensors file",
        good[:-4]: "its header describes",
        good + b"more": "its header describes",
        len(header).to_bytes(8, "little") + header: "its header describes",
        save({"w": torch.zeros(1)}): "missing",
        good.replace(b'"F32"', b'"I64"', 1): "damaged: tensor",
    }.items()):  # fmt: skip
        refused(with_weights(package, tmp_path / str(number), data), match)


def test_weights_that_are_not_finite_are_refused(package: Path, tmp_path: Path) -> None:
    _, model = read_package(package)
    state = model.state_dict()
    state["blocks.p.0.conv.weight"][0] = float("nan")
    refused(with_weights(package, tmp_path, save(state)), "not finite")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["FIFO", "device", "sparse"])
def test_a_file_that_never_ends_never_hangs(kind: str, name: str, package: Path, tmp_path: Path) -> None:
    """Every file of a package may be a pipe, a device or a terabyte of nothing: for prediction and for the registry."""
    from yolofleet.registry.package import collect_content

    copy = shutil.copytree(package, tmp_path / "detector")
    (copy / name).unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(copy / name)
    elif kind == "device":
        (copy / name).symlink_to("/dev/zero")
    else:
        (copy / name).touch()
        os.truncate(copy / name, 2**40)
    if kind == "sparse" and name not in FILES[:2]:
        return  # hashing a terabyte is the user's own wish: nothing of it is kept in memory
    with bounded(seconds=5), pytest.raises(UserError, match=name):
        collect_content(copy)


def test_the_command_that_predicts(test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    folder = test_data / "hostile2" / "packages" / "c01_width_65536"
    with bounded(seconds=5):  # the imports count
        code = main(["predict", str(folder), str(tmp_path / "image.png"), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2
    assert "c01_width_65536/detector.json: model m: block conv_1 (conv)" in error and "weights, more than" in error
    assert len(error.strip().splitlines()) == 1


def long_table(num_rows: int) -> ModelTable:
    blocks = [{"name": f"r{index}", "block": "conv", "out": 8} for index in range(num_rows)]
    blocks[0]["stride"] = 2
    return ModelTable.parse({**TABLE, "blocks": blocks, "head": {"from": [f"r{num_rows - 1}"]}}, source="test")


def test_rows_take_linear_time() -> None:
    """Eight times the rows take about eight times the time, not sixty-four times; and 20,000 are read."""

    def seconds(num_rows: int) -> float:
        began = time.process_time()
        assert len(wire(long_table(num_rows)).blocks) == num_rows
        return time.process_time() - began

    assert min(seconds(20_000), seconds(20_000)) < 30 * min(seconds(2500) for _ in range(3))


@pytest.mark.parametrize("mistake", [{"from": ["r19999"]}, {"from": ["nobody"]}, {"name": "r1"}, {"from": ["r3"] * 3}])
def test_a_mistake_among_20_000_rows_is_named_at_once(mistake: dict[str, Any]) -> None:
    document = long_table(20_000).document()
    document["blocks"][7].update(mistake)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        wire(ModelTable.parse(document, source="test"))
    assert time.process_time() - began < 5 and len(str(caught.value)) < 3000
