"""The detector package: round trip, every form of image, and a readable word about every damage."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from yolofleet.core.errors import UserError
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model, deploy
from yolofleet.models.deployment import half_weights, has_half_weights
from yolofleet.specs.model import ModelChoice

TINY = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (60, 96, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


@pytest.mark.parametrize("deployed", [True, False])
def test_a_package_gives_back_the_same_model(tmp_path: Path, deployed: bool) -> None:
    torch.manual_seed(1)
    model = build_model(TINY, num_classes=2).eval()
    model = deploy(model) if deployed else model
    save_detector(tmp_path / "p", model, [(7, "cat"), (90, "dog")], 64, confidence=0.3, iou=0.5, max_detections=9)
    detector = Detector.load(tmp_path / "p")
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(detector.model(images), model.eval()(images), rtol=0, atol=0)
    assert detector.classes == [(7, "cat"), (90, "dog")]
    assert (detector.card.confidence, detector.card.iou, detector.card.max_detections) == (0.3, 0.5, 9)
    assert detector.card.deployed is deployed
    assert not any(parameter.requires_grad for parameter in detector.model.parameters())


def test_half_weights_take_half_the_bytes_and_are_read_as_they_are(tmp_path: Path) -> None:
    model = deploy(build_model(TINY, num_classes=2).eval())
    rounded = half_weights(model)
    sizes = [
        (save_detector(tmp_path / "package", form, [(1, "a"), (2, "b")], 64) / "model.safetensors").stat().st_size
        for form in (model, rounded)
    ]
    assert sizes[1] < 0.6 * sizes[0]
    read = Detector.load(tmp_path / "package").model
    for name, tensor in rounded.state_dict().items():
        assert read.state_dict()[name].dtype == torch.float32 and torch.equal(read.state_dict()[name], tensor)
    assert torch.equal(rounded.anchors, model.anchors) and not has_half_weights(model)
    next(model.parameters()).data.fill_(1e5)
    with pytest.raises(UserError, match="larger than half precision"):
        half_weights(model)


def test_an_image_is_the_same_in_every_form(package: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    detector = Detector.load(package)
    data = png(photo)
    path = tmp_path / "a b é #1.dat"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    forms = [photo, data, bytearray(data), memoryview(data), path, str(path), text, f"data:image/png;base64,{text}"]
    found = detector.predict(forms, batch_size=3)
    assert len(found) == len(forms)
    assert found[0] and all(records == found[0] for records in found)
    record = found[0][0]
    assert set(record) == {"category_id", "category_name", "bbox", "score"}
    assert json.loads(json.dumps(record)) == record


def test_batches_of_mixed_sizes_give_what_single_images_give(package: Path) -> None:
    detector = Detector.load(package)
    rng = np.random.default_rng(5)
    shapes = [(60, 96), (96, 60), (60, 96), (10, 300), (1, 1), (200, 200)]
    images = [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in shapes]
    together = detector.predict(images, batch_size=6)
    for image, records in zip(images, together, strict=True):
        alone = detector.predict([image])[0]
        assert [record["category_id"] for record in alone] == [record["category_id"] for record in records]
        np.testing.assert_allclose(
            [record["bbox"] for record in alone], [record["bbox"] for record in records], atol=0.01
        )
        height, width = image.shape[:2]
        for x, y, box_width, box_height in (record["bbox"] for record in records):
            assert x >= 0 and y >= 0 and x + box_width <= width + 0.01 and y + box_height <= height + 0.01


def test_thresholds_can_be_changed_for_one_call(package: Path, photo: NDArray[np.uint8]) -> None:
    detector = Detector.load(package)
    assert len(detector.predict([photo], max_detections=3)[0]) == 3
    assert detector.predict([photo], confidence=1.0) == [[]]
    assert detector.predict([]) == []
    with pytest.raises(UserError, match="image size 100 is not a multiple of 32"):
        detector.predict([photo], image_size=100)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        ("missing.jpg", "no such file"),
        (Path("missing.jpg"), "cannot read missing.jpg: No such file"),
        (Path("/dev/zero"), "/dev/zero is a device or pipe"),
        (Path("/"), "/ is a folder"),
        ("data:image/png,abc", "must be base64"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (42, "not int"),
    ],
)
def test_what_is_no_image_is_named(package: Path, image: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Detector.load(package).predict([image])  # type: ignore[list-item]


def test_hostile_images_are_refused_or_read(package: Path, test_data: Path) -> None:
    detector = Detector.load(package)
    folder = test_data / "hostile" / "images"
    skipped = {"truncated.jpg", "truncated_header.jpg", "zero_bytes.jpg", "text.jpg", "html_error_page.jpg"}
    skipped |= {"bomb_30000.png", "bomb_65500.jpg", "bomb_12000_1bit.png"}
    for path in sorted(folder.iterdir()):
        if path.name in skipped:
            with pytest.raises(UserError, match=path.name):
                detector.predict([path])
        elif path.name != "bitflips.jpg":
            assert len(detector.predict([path])) == 1


def change_card(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        card = json.loads((folder / "detector.json").read_text())
        change(card)
        (folder / "detector.json").write_text(json.dumps(card))

    return damage


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: shutil.rmtree(folder), "cannot read .*detector.json"),
    (lambda folder: (folder / "detector.json").unlink(), "cannot read .*detector.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "cannot read .*model.safetensors"),
    (lambda folder: (folder / "detector.json").write_text("{"), "detector.json is not JSON"),
    (lambda folder: (folder / "detector.json").write_bytes(b"\xff\xfe\x00"), "detector.json is not JSON"),
    (lambda folder: (folder / "detector.json").write_text("[]"), "detector.json"),
    (change_card(lambda card: card.update(format=2)), "format 2, this yolofleet reads formats up to 1"),
    (change_card(lambda card: card.pop("classes")), "classes"),
    (change_card(lambda card: card.update(classes=[])), "classes"),
    (change_card(lambda card: card.update(confidence="high")), "confidence"),
    (change_card(lambda card: card.update(colour=1)), "colour"),
    (change_card(lambda card: card["model"].update(blocks=[])), "blocks"),  # type: ignore[attr-defined]
    (change_card(lambda card: card.update(image_size=100)), "not a multiple of 32"),
    (flip_a_byte, "is damaged: its SHA-256"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_every_damage_has_a_readable_word(
    package: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(package, folder)
    damage(folder)
    with pytest.raises(UserError, match=words):
        Detector.load(folder)


def with_weights(folder: Path, tensors: dict[str, torch.Tensor] | bytes) -> None:
    import hashlib

    path = folder / "model.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)
    card = json.loads((folder / "detector.json").read_text())
    card["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "detector.json").write_text(json.dumps(card))


def test_weights_that_do_not_fit_are_named(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(package, folder)
    good = load_file(folder / "model.safetensors")
    name = next(name for name in good if name.endswith("weight"))
    cases: list[tuple[dict[str, torch.Tensor] | bytes, str]] = [
        ({key: value for key, value in good.items() if key != name}, rf"1 \({re.escape(name)}\) missing"),
        ({**good, "extra": torch.zeros(1)}, r"1 \(extra\) left over"),
        ({**good, name: torch.zeros(1)}, rf"1 \({re.escape(name)}: \(1,\), the model has"),
        ({**good, name: torch.full_like(good[name], float("nan"))}, "not finite"),
        (b"not a safetensors file", "not a safetensors file"),
        (b"\xff" * 8 + b"{}", "not a safetensors file"),
    ]
    for tensors, words in cases:
        with_weights(folder, tensors)
        with pytest.raises(UserError, match=words):
            Detector.load(folder)


def test_saving_checks_what_it_is_given(tmp_path: Path) -> None:
    model = build_model(TINY, num_classes=2)
    with pytest.raises(UserError, match="predicts 2 classes, the names are of 1"):
        save_detector(tmp_path / "p", model, [(1, "a")], 64)
    with pytest.raises(UserError, match="not a multiple of 32"):
        save_detector(tmp_path / "p", model, [(1, "a"), (2, "b")], 70)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_detector(tmp_path / "file", model, [(1, "a"), (2, "b")], 64)
