"""Random damage to every file format that is read: a clear refusal or a sound result, never another exception."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.core.errors import UserError
from yolofleet.data.annotation import read_annotation
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.manifest import IndexFormatError, Manifest, ShardIndex
from yolofleet.data.problems import ProblemLog
from yolofleet.data.tar_scan import scan_samples

VALUES = (
    None,
    -1,
    0,
    1e308,
    1e400,
    "x",
    "",
    [],
    {},
    [[]],
    True,
    2**70,
    -(2**70),
    [1, 2],
    {"a": 1},
    "\ud800",
    float("nan"),
)


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        kind, position = chance.random(), chance.randrange(len(damaged) + 1)
        if kind < 0.4 and damaged:
            damaged[min(position, len(damaged) - 1)] = chance.randrange(256)
        elif kind < 0.6:
            del damaged[position:]
        elif kind < 0.8:
            damaged[position:position] = chance.randbytes(chance.choice([1, 3, 512]))
        else:
            del damaged[position : position + chance.choice([1, 7, 512])]
    return bytes(damaged)


def damaged_json(data: bytes, chance: random.Random) -> bytes:
    document = json.loads(data)
    for _ in range(chance.randint(1, 3)):
        target, key = document, None
        while isinstance(target, dict | list) and target and (key is None or chance.random() < 0.75):
            inner = chance.choice(list(target) if isinstance(target, dict) else range(len(target)))
            holder, key, target = target, inner, target[inner]
        if key is not None:
            holder[key] = chance.choice(VALUES)
    return json.dumps(document).encode()


def survived(read: Callable[[bytes], object], data: bytes, rounds: int, *, is_json: bool) -> None:
    chance = random.Random(0)
    for number in range(rounds):
        damage = damaged_json if is_json and number % 2 else damaged_bytes
        try:
            read(damage(data, chance))
        except UserError:
            continue


def test_damaged_annotations(test_data: Path) -> None:
    def read(data: bytes) -> None:
        for record in parse_coco(data, "x", ProblemLog()).records:
            read_annotation(record.to_json(), 100)

    survived(read, (test_data / "hostile" / "annotations" / "crowd_rle.json").read_bytes(), 800, is_json=True)


def test_damaged_manifests_records_and_indexes(shards: Path, dataset: ShardDataset) -> None:
    survived(
        lambda data: Manifest.from_bytes(data, "x").to_bytes(),
        (shards / "manifest.json").read_bytes(),
        600,
        is_json=True,
    )
    survived(lambda data: read_annotation(data, 3), dataset.read(0).annotation, 600, is_json=True)
    index, entry = (shards / "shards" / "shard-000000.index").read_bytes(), dataset.manifest.shards[0]
    survived(lambda data: ShardIndex.from_bytes(data, entry, "x"), index, 600, is_json=False)


@pytest.mark.parametrize("name", ["unicode_key.tar", "huge_member_size.tar", "ok.tar"])
def test_damaged_tars(test_data: Path, name: str) -> None:
    def read(data: bytes) -> None:
        problems = ProblemLog()
        samples = list(scan_samples(io.BytesIO(data), len(data), "x", problems))
        assert all(sample.image is not None and sample.annotation is not None for sample in samples)
        assert samples or problems.counts

    survived(read, (test_data / "hostile" / "shards" / name).read_bytes(), 300, is_json=False)


def test_an_index_that_is_not_the_one_of_the_manifest_is_refused(shards: Path, tmp_path: Path) -> None:
    for path in shards.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(shards)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    index = tmp_path / "shards" / "shard-000001.index"
    index.write_bytes((shards / "shards" / "shard-000002.index").read_bytes())
    dataset = ShardDataset(tmp_path)
    assert dataset.read(0).key
    with pytest.raises(IndexFormatError, match=r"shard-000001\.index: not the index that the manifest names"):
        dataset.read(8)
