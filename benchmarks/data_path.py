"""How fast the data path is, as ratios to named peers measured in the same run, interleaved, on one core.

    python benchmarks/data_path.py [FOLDER_OF_JPEGS] [--json]

- ``mosaic_over_classic``: our training stream (shards, mosaic + affine + colour + flip at 640) over the classic order
  of work in OpenCV: decode four, resize, paste on a canvas, warp, HSV by lookup tables, flip.
- ``mosaic_over_decode``: the same stream over decoding one image and padding it, which is the limit of any CPU path.
- ``decode_over_classic``: that limit over the classic order of work; a check that the classic peer is honest.
- ``read_over_webdataset``: samples read from shards without decoding, over webdataset's own reader.

Rates are samples per second of CPU time, the best of several rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import webdataset
from numpy.typing import NDArray

from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import image_size
from yolofleet.data.problems import ProblemLog
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import Augmentation
from yolofleet.storage import open_storage

SIDE = 640
MICRO_BATCH = 16
SETTINGS = Augmentation(mosaic9_share=0.0, mixup=0.0, paste_in=0.0, scale=0.5, translate=0.1)


def built(folder: Path, out: Path) -> ShardDataset:
    """Build shards of a folder of JPEGs, with the annotations beside it or else with three boxes in each image."""
    problems = ProblemLog()
    beside = folder.parent / "instances.json"
    data = beside.read_bytes() if beside.is_file() else json.dumps(made_up_annotations(folder)).encode()
    source = parse_coco(data, str(folder), problems)
    build_dataset(source, open_storage(folder), open_storage(out), BuildOptions(shard_bytes=8 << 20), problems)
    return ShardDataset(out)


def made_up_annotations(folder: Path) -> dict[str, Any]:
    """Return a COCO document with three boxes in each image of a folder."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(sorted(folder.glob("*.jpg")), start=1):
        width, height = image_size(path.read_bytes())
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for place in range(3):
            box = [width * place / 4, height * place / 4, width / 3, height / 3]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    if not images:
        sys.exit(f"{folder}: no *.jpg here")
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def classic_sample(
    images: list[bytes], generator: np.random.Generator, canvas: NDArray[np.uint8], output: NDArray[np.uint8]
) -> None:
    """Make one training sample (3, SIDE, SIDE) in the classic order of work; the canvas is memory to use."""
    canvas.fill(114)
    centre_x, centre_y = (int(value) for value in generator.uniform(SIDE / 2, 3 * SIDE / 2, size=2))
    for place, data in enumerate(images):
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
        gain = SIDE / max(image.shape[:2])
        if gain != 1:
            size = (round(image.shape[1] * gain), round(image.shape[0] * gain))
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        height, width = image.shape[:2]
        left = centre_x if place % 2 else centre_x - width
        top = centre_y if place // 2 else centre_y - height
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + width, 2 * SIDE), min(top + height, 2 * SIDE)
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    scale = generator.uniform(1 - SETTINGS.scale, 1.1 + SETTINGS.scale)
    shift = (0.5 + generator.uniform(-SETTINGS.translate, SETTINGS.translate, size=2)) * SIDE
    matrix = np.array([[scale, 0, shift[0] - scale * SIDE], [0, scale, shift[1] - scale * SIDE]])
    image = cv2.warpAffine(canvas, matrix, (SIDE, SIDE), borderValue=(114, 114, 114))
    gains = 1 + generator.uniform(-1, 1, size=3) * (SETTINGS.hsv_h, SETTINGS.hsv_s, SETTINGS.hsv_v)
    levels = np.arange(256, dtype=gains.dtype)
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    tables = [(levels * gains[0]) % 180, np.clip(levels * gains[1], 0, 255), np.clip(levels * gains[2], 0, 255)]
    pairs = zip((hue, saturation, value), tables, strict=True)
    channels = [cv2.LUT(channel, table.astype(np.uint8)) for channel, table in pairs]
    image = cv2.cvtColor(cv2.merge(channels), cv2.COLOR_HSV2RGB)
    if generator.random() < SETTINGS.fliplr:
        image = cv2.flip(image, 1)
    cv2.split(image, list(output))


def decode_and_pad(data: bytes, padded: NDArray[np.uint8]) -> None:
    """Decode one image and pad it to the input's size (SIDE, SIDE, 3)."""
    image = simplejpeg.decode_jpeg(data, "RGB")[:SIDE, :SIDE]
    padded.fill(114)
    padded[: image.shape[0], : image.shape[1]] = image


def rates(cases: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return samples per CPU second of each case: the best of several rounds, the cases taking turns."""
    best = dict.fromkeys(cases, 0.0)
    for _ in range(rounds):
        for name, work in cases.items():
            started = time.process_time()
            count = work()
            best[name] = max(best[name], count / (time.process_time() - started))
    return best


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure everything on the JPEGs of a folder."""
    cv2.setNumThreads(1)
    # Once a large block was freed, the C library keeps memory instead of returning it: no case pays for fresh pages.
    large = np.empty(30 << 20, dtype=np.uint8)
    del large
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as out:
        dataset = built(folder, Path(out))
        stream = TrainingStream(
            dataset,
            seed=0,
            image_size=SIDE,
            global_batch_size=MICRO_BATCH,
            micro_batch_size=MICRO_BATCH,
            augmentation=SETTINGS,
            num_threads=0,
        )
        urls = [str(Path(out, entry.tar_key)) for entry in dataset.manifest.shards]
        batches = stream.micro_batches(0, [0])

        def ours() -> int:
            return sum(len(batch.keys) for batch in itertools.islice(batches, 4))

        canvas = np.empty((2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
        padded = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
        outputs = np.empty((MICRO_BATCH, 3, SIDE, SIDE), dtype=np.uint8)

        def classic() -> int:
            for place in range(2 * MICRO_BATCH):
                chosen = [images[index] for index in generator.integers(len(images), size=4)]
                classic_sample(chosen, generator, canvas, outputs[place % MICRO_BATCH])
            return 2 * MICRO_BATCH

        def decode() -> int:
            chosen = images[: 4 * MICRO_BATCH]
            for data in chosen:
                decode_and_pad(data, padded)
            return len(chosen)

        def read() -> int:
            for number in range(len(dataset)):
                dataset.read(number)
            return len(dataset)

        def webdataset_read() -> int:
            return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))

        found = rates({"ours": ours, "classic": classic, "decode": decode}, rounds)
        found |= rates({"read": read, "webdataset": webdataset_read}, rounds)
    return {
        "mosaic_over_classic": round(found["ours"] / found["classic"], 2),
        "mosaic_over_decode": round(found["ours"] / found["decode"], 3),
        "decode_over_classic": round(found["decode"] / found["classic"], 2),
        "read_over_webdataset": round(found["read"] / found["webdataset"], 2),
        "samples_per_cpu_second": {name: round(rate, 1) for name, rate in found.items()},
        "images": len(images),
        "image_size": SIDE,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("YOLOFLEET_TEST_DATA", "../shared/data"))
    parser.add_argument("folder", type=Path, nargs="?", default=data / "coco128" / "images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is no folder; name one with JPEGs, or set YOLOFLEET_TEST_DATA")
    found = measure(arguments.folder, arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:>24} {value}")


if __name__ == "__main__":
    main()
