"""All eight EXIF orientations: what a shard shows is what its boxes speak of, whatever the format of the labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.exports import NAMES
from yolofleet.cli.main import main
from yolofleet.data.check import check_dataset
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import decode_image, exif_orientation
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.evaluation.images import read_image

STORED_TURN = {  # what makes the stored image of an upright one
    1: (),
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_270,),
}
BOX = [10.0, 15.0, 30.0, 20.0]
SIZES = ((160, 120), (120, 120))


def photograph(path: Path, orientation: int, size: tuple[int, int], box: list[float] | None = None) -> None:
    """Save an image that is red in its box when it is shown upright."""
    pixels = np.full((size[1], size[0], 3), 200, np.uint8)
    x, y, width, height = (round(value) for value in box or BOX)
    pixels[y : y + height, x : x + width] = (230, 20, 20)
    image = Image.fromarray(pixels)
    for turn in STORED_TURN[orientation]:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, "JPEG", quality=95, exif=exif)


def write_labels(folder: Path, kind: str, name: str, size: tuple[int, int], box: list[float]) -> Path:
    """Write the one label of an image, and return what to shard."""
    (width, height), (x, y, across, down) = size, box
    labels = folder / kind
    labels.mkdir(exist_ok=True)
    if kind == "yolo":
        shares = ((x + across / 2) / width, (y + down / 2) / height, across / width, down / height)
        (labels / f"{name}.txt").write_text(f"0 {' '.join(map(repr, shares))}\n")
        return labels
    if kind == "voc":
        edges = [x, y, x + across, y + down]
        if all(float(edge).is_integer() for edge in edges):  # pixels, counted from 1
            edges = [int(x) + 1, int(y) + 1, int(x + across), int(y + down)]
        names = ("xmin", "ymin", "xmax", "ymax")
        corners = "".join(f"<{side}>{edge!r}</{side}>" for side, edge in zip(names, edges, strict=True))
        sides = f"<size><width>{width}</width><height>{height}</height></size>"
        body = f"<filename>{name}.jpg</filename>{sides}<object><name>red</name><bndbox>{corners}</bndbox></object>"
        (labels / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
        return labels
    image = {"id": 1, "file_name": f"{name}.jpg"} | ({} if kind == "unsized" else {"width": width, "height": height})
    document = {
        "images": [image],
        "categories": [{"id": 1, "name": NAMES[0]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": across * down, "iscrowd": 0}],
    }
    (labels / "a.json").write_text(json.dumps(document))
    return labels / "a.json"


@pytest.mark.parametrize("size", SIZES, ids=["wide", "square"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["yolo", "voc", "coco", "unsized"])
def test_boxes_of_the_upright_image_are_on_it_and_predict_sees_the_same(
    tmp_path: Path, kind: str, orientation: int, size: tuple[int, int]
) -> None:
    (tmp_path / "images").mkdir()
    photograph(tmp_path / "images" / "a.jpg", orientation, size)
    labels = write_labels(tmp_path, kind, "a", size, BOX)
    for options in ((), ("--reencode", "60", "--longest-side", "100")):
        out = tmp_path / f"out{len(options)}"
        assert main(["data", "shard", str(labels), str(tmp_path / "images"), str(out), *options]) == 0
        sample = ShardDataset(out).read_decoded(0)
        ((x, y, width, height),) = sample.record.boxes.round().astype(int).tolist()
        patch = sample.pixels[y + 3 : y + height - 3, x + 3 : x + width - 3].reshape(-1, 3).mean(axis=0)
        assert patch[0] > 180 and patch[1] < 90, patch
    shown = read_image(tmp_path / "images" / "a.jpg")
    stored = ShardDataset(tmp_path / "out0").read_decoded(0)
    assert shown.shape == stored.pixels.shape and (shown == stored.pixels).all()
    again = tmp_path / "again"
    assert main(["data", "shard", str(tmp_path / "out0" / "shards"), "-", str(again)]) == 0
    assert (ShardDataset(again).read_decoded(0).pixels == shown).all(), "our own shards are a source too"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_sizes_that_fit_the_stored_image_only_mean_boxes_on_it(tmp_path: Path, orientation: int) -> None:
    (tmp_path / "images").mkdir()
    photograph(tmp_path / "images" / "a.jpg", orientation, (160, 120))
    labels = write_labels(tmp_path, "coco", "a", (120, 160), BOX)
    assert main(["data", "shard", str(labels), str(tmp_path / "images"), str(tmp_path / "out")]) == 0
    sample = ShardDataset(tmp_path / "out").read_decoded(0)
    assert sample.size == (120, 160) and sample.record.upright is False


@pytest.mark.parametrize("gain", [0.5, 3])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_the_size_of_a_scaled_copy_says_which_way_up_its_boxes_are(
    tmp_path: Path, kind: str, orientation: int, gain: float
) -> None:
    """The boxes of a copy, of the image as stored or as shown, are scaled and lie on what they were drawn around."""
    for upright, size in ((True, (160, 120)), (False, (120, 160))):  # the image is stored with 120x160
        folder = tmp_path / str(upright)
        (folder / "images").mkdir(parents=True)
        photograph(folder / "images" / "a.jpg", orientation, (160, 120))
        box = [number * gain for number in BOX]
        labels = write_labels(folder, kind, "a", (round(size[0] * gain), round(size[1] * gain)), box)
        problems = ProblemLog()
        source, store = read_source(str(labels), str(folder / "images"), problems)
        (record,) = check_dataset(source, store, problems).records
        assert (record.width, record.height, record.upright) == (*size, upright)
        assert np.abs(record.boxes[0] - BOX).max() < 1e-6
        counts = {"image_size_scaled": 1, "image_turned" if upright else "image_exif_ignored": 1}
        has_decimals = kind == "voc" and any(number % 1 for number in box)
        assert problems.counts == counts | ({"corners_with_decimals": 1} if has_decimals else {})


@pytest.mark.parametrize(
    ("orientation", "size", "stated"),
    [
        (3, (160, 120), (160, 120)),
        (3, (160, 120), (80, 60)),
        (6, (120, 120), (120, 120)),
        (6, (120, 120), (99, 99)),
        (6, (160, 120), (200, 170)),
    ],
)
def test_sizes_that_decide_nothing_are_told(
    tmp_path: Path, orientation: int, size: tuple[int, int], stated: tuple[int, int]
) -> None:
    (tmp_path / "images").mkdir()
    photograph(tmp_path / "images" / "a.jpg", orientation, size)
    problems = ProblemLog()
    labels = write_labels(tmp_path, "coco", "a", stated, BOX)
    source, store = read_source(str(labels), str(tmp_path / "images"), problems)
    check_dataset(source, store, problems)
    assert problems.counts["image_turn_unclear"] == 1 and problems.counts["image_turned"] == 1


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    orientation=st.integers(1, 8),
    size=st.sampled_from(SIZES),
    kind=st.sampled_from(["yolo", "voc", "coco"]),
)
def test_random_boxes_come_back_to_a_millionth_of_a_pixel(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    orientation: int,
    size: tuple[int, int],
    kind: str,
) -> None:
    x, y = (data.draw(st.floats(0, side - 25)) for side in size)
    width, height = data.draw(st.floats(1, size[0] - x)), data.draw(st.floats(1, size[1] - y))
    assume(max(x + width, y + height) > 2)  # where all boxes lie in the first pixel, they are refused as shares
    box = [x, y, width, height]
    folder = tmp_path_factory.mktemp("round")
    (folder / "images").mkdir()
    photograph(folder / "images" / "a.jpg", orientation, size)
    labels = write_labels(folder, kind, "a", size, box)
    assert main(["data", "shard", str(labels), str(folder / "images"), str(folder / "out"), "--json"]) == 0
    ((_, record),) = ShardDataset(folder / "out").records()
    assert np.abs(record.boxes[0] - box).max() < 1e-6 and (record.width, record.height) == size


def test_a_record_of_an_older_shard_turns_by_its_size() -> None:
    """Before records said it, only a size that fits the turned image alone turned it."""
    from yolofleet.data.decode import decode_image

    for orientation in range(1, 9):
        for size in SIZES:
            pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            stored = Image.fromarray(pixels)
            exif = Image.Exif()
            exif[0x0112] = orientation
            data = io.BytesIO()
            stored.save(data, "PNG", exif=exif)
            shown = decode_image(data.getvalue(), upright=(size[1], size[0]))
            turned = orientation >= 5 and size[0] != size[1]
            assert shown.shape[:2] == ((size[0], size[1]) if turned else (size[1], size[0]))
            assert turned or (shown == pixels).all()


@pytest.mark.parametrize("num_segments", [0, 1, 3, 255])
def test_the_orientation_is_found_behind_a_large_colour_profile(num_segments: int) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(data, "JPEG", exif=exif)
    head, size = b"\xff\xe2" + (60_016).to_bytes(2, "big") + b"ICC_PROFILE\0", bytes(60_000)
    profile = b"".join(head + bytes([number, num_segments]) + size for number in range(1, num_segments + 1))
    stored = data.getvalue()[:2] + profile + data.getvalue()[2:]
    assert exif_orientation(stored) == 6 and decode_image(stored).shape == (24, 16, 3)
    plain = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(plain, "JPEG", comment=b"Exif\0\0")
    assert exif_orientation(plain.getvalue()) == 1
