"""Duplicates found by ``yolofleet data check``, and what the checks of the content cost.

    python benchmarks/content_check.py [--images 5000] [--image-size 192] [--json]

Images are drawn as by ``yolofleet data synth``, in two datasets, and 1 % of them get a copy: the same file, encoded
anew, scaled, mirrored, upside down, or several of these; half of the copies go to the other dataset. `recall` is the
share of the planted pairs that are found; `false_pairs` is the share of the pairs found that were not planted. `ratio`
is the processor time of the whole check (with duplicates, leaks, histograms and suspicious labels) over that of the
check of files and boxes alone (its fingerprints left out); the median of several rounds in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import combinations
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import simplejpeg

from yolofleet.data import duplicates
from yolofleet.data.check import check_dataset
from yolofleet.data.content import CheckedSplit, Content, check_content
from yolofleet.data.decode import decode_image
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.sources import ImageStore, SourceDataset
from yolofleet.data.synth import write_synthetic_dataset

COPIED_SHARE = 0.01
ROUNDS = 5
PARTS = ("train", "val")
Dataset = tuple[SourceDataset, ImageStore]


def copy_of(data: bytes, kind: int, generator: np.random.Generator) -> bytes:
    """Return a copy of an image: the same bytes, or changed by one or several of re-encoding, scaling, mirroring."""
    pixels = decode_image(data)
    if kind == 0:
        return data
    if kind in (2, 5):
        gain = generator.uniform(0.4, 1.6)
        size = (round(pixels.shape[1] * gain), round(pixels.shape[0] * gain))
        pixels = cv2.resize(pixels, size, interpolation=int(generator.choice([cv2.INTER_AREA, cv2.INTER_LINEAR])))
    if kind in (3, 5):
        pixels = pixels[:, ::-1]
    if kind == 4:
        pixels = pixels[::-1]
    quality = int(generator.integers(40, 96))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB"))


def plant(folder: Path, num_images: int) -> set[frozenset[str]]:
    """Add copies of random images, and write the two datasets; return the planted pairs of file names."""
    generator = np.random.default_rng(0)
    document = json.loads((folder / "instances.json").read_text())
    belongs = {image["file_name"]: int(generator.integers(2)) for image in document["images"]}
    planted = set()
    for number, source in enumerate(generator.choice(num_images, round(COPIED_SHARE * num_images), replace=False)):
        original = document["images"][source]
        name = f"copy-{number:06d}.jpg"
        data = (folder / "images" / original["file_name"]).read_bytes()
        (folder / "images" / name).write_bytes(copy_of(data, number % 6, generator))
        document["images"].append({"id": num_images + number + 1, "file_name": name})
        belongs[name] = int(generator.integers(2))
        planted.add(frozenset((original["file_name"], name)))
    for part, title in enumerate(PARTS):
        images = [image for image in document["images"] if belongs[image["file_name"]] == part]
        ids = {image["id"] for image in images}
        annotations = [entry for entry in document["annotations"] if entry["image_id"] in ids]
        (folder / f"{title}.json").write_text(json.dumps({**document, "images": images, "annotations": annotations}))
    return planted


def check_files(datasets: list[Dataset]) -> None:
    """Decode every image and compare every box with it: the check without its content."""
    without = {
        "reduce_image": lambda pixels: None,
        "fingerprints_of": lambda digests, reduced: np.zeros(len(reduced), duplicates.FINGERPRINT),
    }
    with mock.patch.multiple(duplicates, **without):
        for source, images in datasets:
            check_dataset(source, images, ProblemLog())


def check_all(datasets: list[Dataset]) -> Content:
    """Check files, boxes and content."""
    splits = [
        CheckedSplit(title, check_dataset(source, images, ProblemLog()), images)
        for title, (source, images) in zip(PARTS, datasets, strict=True)
    ]
    return check_content(splits, ProblemLog())


def seconds_of(work: object) -> float:
    """Return the processor time of a call."""
    started = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - started


def main() -> None:
    """Draw, plant, check, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_dataset(folder, arguments.images, 0, arguments.image_size)
        planted = plant(folder, arguments.images)
        datasets = [read_source(f"{folder}/{part}.json", f"{folder}/images", ProblemLog()) for part in PARTS]
        content = check_all(datasets)
        ratios, seconds = [], []
        for _ in range(ROUNDS):
            plain, whole = seconds_of(lambda: check_files(datasets)), seconds_of(lambda: check_all(datasets))
            ratios.append(whole / plain)
            seconds.append(whole)
    found = {
        frozenset(content.record(*image).file_name for image in pair)
        for group in content.duplicates
        for pair in combinations(group.images, 2)
    }
    facts = {
        "images": arguments.images + len(planted),
        "planted": len(planted),
        "found": len(found),
        "recall": len(found & planted) / len(planted),
        "false_pairs": len(found - planted) / max(1, len(found)),
        "leaks": sum(group.is_leak for group in content.duplicates),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "milliseconds_an_image": round(1000 * statistics.median(seconds) / (arguments.images + len(planted)), 3),
    }
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for key, value in facts.items():
        print(f"{key:>24} {value}")


if __name__ == "__main__":
    main()
