"""Images far larger than what they are needed for: refused by their size, decoded smaller, in bounded memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data.hostile_shards import annotation, encoded, write_dataset
from yolofleet.cli.main import main
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import (
    FULL_PIXELS,
    MOST_REDUCTION,
    ImageError,
    check_file_size,
    decode_image,
    decode_reduced,
    reduction,
)
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.data.records import SampleError
from yolofleet.data.stream import TrainingStream
from yolofleet.evaluation.images import ImageReadError, read_image
from yolofleet.specs.hyperparameters import Augmentation
from yolofleet.specs.job import JobSpec

SIDES = st.integers(1, 70_000)


@given(SIDES, SIDES, st.integers(32, 2048))
def test_an_image_is_halved_only_while_it_is_far_larger_than_needed(width: int, height: int, needed: int) -> None:
    factor = reduction(width, height, needed)
    assert factor in (1, 2, 4, 8)
    if factor > 1:
        assert max(width, height) / factor >= 2 * needed, "never less than twice the side that the network sees"
        assert width * height > FULL_PIXELS * (factor / 2) ** 2, "up to 4 million pixels are never reduced"
    if factor < MOST_REDUCTION:
        assert width * height <= FULL_PIXELS * factor**2 or max(width, height) < 4 * needed * factor, "bounded"


def photograph(width: int, height: int) -> NDArray[np.uint8]:
    """Return blocks of 50 pixels, which every format packs fast."""
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 50), -(-width // 50), 3), dtype=np.uint8)
    return np.repeat(np.repeat(blocks, 50, axis=0), 50, axis=1)[:height, :width]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_format_is_reduced_alike(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(3001, 2001), image_format, exif=exif)
    pixels, size = decode_reduced(data, needed_side=320)
    full, full_size = decode_reduced(data)
    assert size == full_size == full.shape[1::-1] == ((3001, 2001) if orientation == 1 else (2001, 3001))
    assert pixels.shape[1::-1] == tuple(-(-side // 2) for side in size)
    expected = np.asarray(Image.fromarray(full).resize(pixels.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - expected).mean() < 4.5, "a shift by one pixel costs more"
    assert decode_reduced(data, needed_side=1000)[0].shape == full.shape


def large_dataset(folder: Path, images: list[bytes], **changes: Any) -> ShardDataset:
    return ShardDataset(write_dataset(folder, [annotation(n + 1) | changes for n in range(len(images))], images))


def test_boxes_stay_on_their_objects(tmp_path: Path) -> None:
    """A sample of a reduced image has the targets of the whole one, outlines included."""
    pixels = np.full((3000, 4000, 3), 20, dtype=np.uint8)
    pixels[600:1800, 400:1600] = 230
    outline = [400, 600, 1600, 600, 1600, 1800, 400, 1800]
    dataset = large_dataset(tmp_path, [encoded(pixels)], width=4000, height=3000, boxes=[[400, 600, 1200, 1200]],
                            areas=[1.44e6], segmentations=[[outline]])  # fmt: skip
    assert dataset.read_decoded(0, needed_side=160).pixels.shape == (1500, 2000, 3)
    stream = TrainingStream(dataset, seed=1, image_size=160, global_batch_size=1, micro_batch_size=1,
                            augmentation=Augmentation.none(), num_threads=0)  # fmt: skip
    batch = stream.micro_batch(0, 0)
    assert np.allclose(batch.targets.numpy()[0, 2:] * 160, [40, 20 + 48, 48, 48], atol=1e-3)
    shown = batch.images[0, 0].numpy()
    assert shown[50:86, 22:58].min() > 220 and shown[30:40, 70:150].max() < 30
    cut = TrainingStream(dataset, seed=1, image_size=160, global_batch_size=1, micro_batch_size=1,
                         augmentation=Augmentation(degrees=20.0), num_threads=0)  # fmt: skip
    for step in range(4):
        targets = cut.micro_batch(step, 0).targets.numpy()
        assert np.isfinite(targets).all() and (np.abs(targets[:, 2:] - 0.5) <= 0.5).all()


@pytest.mark.parametrize("rectangular", [False, True])
def test_evaluation_maps_boxes_back_to_the_whole_image(tmp_path: Path, rectangular: bool) -> None:
    dataset = large_dataset(tmp_path, [encoded(photograph(4001, 3001))], width=4001, height=3001)
    [batch] = EvaluationStream(dataset, image_size=320, stride=32, batch_size=1, rectangular=rectangular)
    box = batch.letterboxes[0]
    assert batch.original_sizes == [(3001, 4001)] and (box.original_height, box.original_width) == (3001, 4001)
    assert box.gain == pytest.approx(320 / 4001) and box.resized_width == 320


def test_a_micro_batch_holds_a_bounded_number_of_pixels(tmp_path: Path) -> None:
    """Four black images of 36 million pixels, 150 kB in all, would take 430 MB at their full size."""
    black = encoded(np.zeros((6000, 6000, 3), dtype=np.uint8), "PNG")
    dataset = large_dataset(tmp_path, [black] * 4, width=6000, height=6000)
    stream = TrainingStream(dataset, seed=1, image_size=64, global_batch_size=4, micro_batch_size=4,
                            augmentation=Augmentation(), num_threads=0)  # fmt: skip
    tracemalloc.start()
    try:
        for _ in itertools.islice(stream.micro_batches(0, [0]), 2):
            pass
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 36e6 * 3 + 4 * 3 * FULL_PIXELS + 30e6, "one whole image at a time"
    assert kept < 4 * 3 * FULL_PIXELS + 30e6


MEMORY = """
import os, sys
from pathlib import Path
from yolofleet.data.decode import decode_image

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

decode_image(Path(sys.argv[1], "small").read_bytes())
for path in sorted(Path(sys.argv[1]).glob("large*")):
    if (child := os.fork()) == 0:
        data = path.read_bytes()
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        pixels = decode_image(data)
        grown = (kilobytes("VmHWM") - before) * 1024
        print(path.name, round((grown - 4e6) / pixels.nbytes, 2), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("RGB", "JPEG", {}),
    "jpeg-progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "jpeg-turned": ("RGB", "JPEG", {"turn": 6}),
    "jpeg-cmyk": ("CMYK", "JPEG", {}),
    "png": ("RGB", "PNG", {"compress_level": 1}),
    "png-alpha": ("RGBA", "PNG", {"compress_level": 1}),
    "png-grey-alpha": ("LA", "PNG", {"compress_level": 1}),
    "png-palette": ("P", "PNG", {"compress_level": 1}),
    "png-16": ("I;16", "PNG", {"compress_level": 1}),
    "webp": ("RGB", "WEBP", {"method": 0}),
    "webp-lossless": ("RGBA", "WEBP", {"lossless": True, "method": 0}),
    "avif": ("RGB", "AVIF", {"speed": 10}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "tiff-turned": ("RGB", "TIFF", {"compression": "tiff_adobe_deflate", "turn": 6}),
}


def test_decoding_takes_at_most_three_times_its_pixels(tmp_path: Path) -> None:
    whole = Image.fromarray(photograph(3000, 2400))
    wide = np.asarray(whole.convert("L")).astype(np.uint16) << 8
    (tmp_path / "small").write_bytes(encoded(np.zeros((8, 8, 3), dtype=np.uint8)))
    for name, (mode, image_format, options) in KINDS.items():
        exif = Image.Exif()
        exif[0x0112] = options.pop("turn", 1)
        image = Image.fromarray(wide) if mode == "I;16" else whole.convert(mode)
        image.save(tmp_path / f"large-{name}", image_format, **options, exif=exif)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    found = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert len(found) == len(KINDS)
    assert {name: times for name, times in found.items() if times > 3.0} == {}


def sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(size_bytes)
    return path


def test_files_that_no_image_needs_are_counted_and_never_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.jpg").write_bytes(encoded(photograph(200, 150)))
    sparse(images / "huge.jpg", 100 * 10**9)
    sparse(images / "large.png", 3 * 10**9)
    names = ("good.jpg", "huge.jpg", "large.png")
    document = {
        "images": [{"id": n, "file_name": name, "width": 200, "height": 150} for n, name in enumerate(names, 1)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 50, 50]} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    annotations = str(tmp_path / "coco.json")
    assert main(["data", "check", annotations, str(images), "--html", str(tmp_path / "page.html"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["usable"], found["problems"]["image_too_large"]["count"]) == (1, 2)
    assert "huge.jpg: the file has 100,000,000,000 bytes" in (tmp_path / "page.html").read_text()
    assert main(["data", "shard", annotations, str(images), str(tmp_path / "out"), "--max-skipped", "0.9"]) == 0
    assert "image_too_large x 2" in capsys.readouterr().err
    labels = tmp_path / "labels"
    labels.mkdir()
    for name in names:
        (labels / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert main(["data", "check", str(labels), str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"]["image_too_large"]["count"] == 2
    for name in names[1:]:
        with pytest.raises(ImageReadError, match=rf"{name}: the file has [0-9,]+ bytes, more than 100,000,000 pixels"):
            read_image(images / name)


def test_the_limit_grows_with_the_pixels_that_are_allowed() -> None:
    check_file_size(800_000_000)
    check_file_size(3 * 10**9, max_pixels=400_000_000)
    with pytest.raises(ImageError, match="more than 1,000 pixels need") as refusal:
        check_file_size(2 * 10**6, max_pixels=1000)
    assert refusal.value.reason == "image_too_large"


def test_the_limits_of_a_job_hold_in_training_and_evaluation(tmp_path: Path) -> None:
    images = [encoded(photograph(side, 100)) for side in (200, 400, 600)] + [b"\xff\xd8\xff" + bytes(2 * 10**6)]
    dataset = large_dataset(tmp_path, images, width=200, height=100)
    stream = TrainingStream(dataset, seed=1, image_size=64, global_batch_size=4, micro_batch_size=4,
                            augmentation=Augmentation(), num_threads=0, max_pixels=45_000)  # fmt: skip
    assert sorted(stream.micro_batch(0, 0).skipped) == [("000002", "image_too_large"), ("000003", "image_too_large")]
    [batch] = EvaluationStream(dataset, image_size=64, stride=32, batch_size=4, max_pixels=45_000)
    assert batch.image_ids == [1, 2] and [reason for _, reason in batch.skipped] == ["image_too_large"] * 2
    with pytest.raises(SampleError, match="the file has 2,000,003 bytes"):
        dataset.read(3, max_pixels=1000)


def test_the_limit_belongs_to_what_a_run_computes_once_it_is_set() -> None:
    document = {"name": "run", "model": {"name": "yolov7-tiny"}, "data": {"train": "a", "val": "b"}}
    plain = JobSpec.parse(document, source="job")
    assert plain.data.max_pixels == 100_000_000 and "max_pixels" not in plain.computation()["data"]
    changed = JobSpec.parse(document | {"data": document["data"] | {"max_pixels": 10**6}}, source="job")  # type: ignore[operator]
    assert changed.digest() != plain.digest() and changed.computation()["data"]["max_pixels"] == 10**6


def test_pixels_beyond_the_limit_are_never_allocated() -> None:
    with pytest.raises(ImageError, match="20000x20000 is 400,000,000 pixels"):
        decode_image(encoded(np.zeros((8, 8, 3), dtype=np.uint8), "BMP").replace(
            (8).to_bytes(4, "little") * 2, (20000).to_bytes(4, "little") * 2))  # fmt: skip
