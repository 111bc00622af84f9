"""Manifests, indexes and shards as a stranger could write them: refused on one line before anything is allocated."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.hostile_shards import annotation, write_dataset
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data import verification
from yolofleet.data.build import _FinishedShard
from yolofleet.data.cache_folder import CacheSettings
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.manifest import IndexFormatError, Manifest, ManifestError
from yolofleet.data.verification import open_verified

SAMPLES = [annotation(number) for number in range(1, 5)]
Change = Callable[[dict[str, Any]], None]


def shard(**values: Any) -> Change:
    return lambda manifest: manifest["shards"][0].update(values)


def both(samples: Any, **values: Any) -> Change:
    """Change the samples of the shard and of the manifest."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][0].update(samples=samples, **values)
        manifest["num_samples"] = samples

    return change


def value(**values: Any) -> Change:
    return lambda manifest: manifest.update(values)


MANIFESTS: dict[str, tuple[Change, str]] = {
    "samples 10^15": (both(10**15), "samples is 1000000000000000, not a whole number within 1 and"),
    "samples 2x10^8": (both(2 * 10**8), "samples is 200000000"),
    "samples 2x10^8 in a shard of 1 TB": (both(2 * 10**8, bytes=2**40), "within 1 and 1,000,000"),
    "samples 10^30": (both(10**30), "samples is 1000000000000000000000000000000"),
    "samples 0": (both(0), "samples is 0"),
    "samples -4": (both(-4), "samples is -4"),
    "samples a float": (both(4.0), r"samples is 4\.0"),
    "samples true": (shard(samples=True), "samples is True"),
    "samples text": (shard(samples="4"), "samples is '4'"),
    "sums that lie": (value(num_samples=5), "num_samples 5, but the shards hold 4"),
    "boxes that lie": (value(num_boxes=10**12), r"class_counts must be one for each class, and 1,000,000,000,000"),
    "empty ones that lie": (value(num_empty=5), "num_samples 4"),
    "crowds negative": (value(num_crowds=-1), "num_crowds is -1"),
    "no shards": (value(shards=[]), "the shards hold 0"),
    "shards null": (value(shards=None), "damaged manifest"),
    "shards an object": (value(shards={"0": {}}), "damaged manifest"),
    "no classes": (value(classes=[], class_counts=[], num_boxes=0), "0 classes must be at least one"),
    "classes text": (value(classes="ab"), "damaged manifest"),
    "one id twice": (value(classes=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "each with its own id"),
    "class id 2^70": (value(classes=[{"id": 2**70, "name": "a"}, {"id": 2, "name": "b"}]), "id is 1180591620717411"),
    "class id -1": (value(classes=[{"id": -1, "name": "a"}, {"id": 2, "name": "b"}]), "id is -1"),
    "half a pair": (value(classes=[{"id": 1, "name": "\ud800"}, {"id": 2, "name": "b"}]), "surrogates not allowed"),
    "name a list": (value(classes=[{"id": 1, "name": ["a"]}, {"id": 2, "name": "b"}]), "name is"),
    "counts too few": (value(class_counts=[4]), "damaged manifest"),
    "counts too many": (value(class_counts=[4, 0, 0]), "class_counts must be one for each class"),
    "digest ../private": (shard(sha256="../private"), r"sha256 is '\.\./private', not \[0-9a-f\]\{64\}"),
    "digest in capitals": (shard(sha256="A" * 64), "sha256 is 'AAAA"),
    "digest with a line end": (shard(sha256="a" * 64 + "\n"), "sha256 is 'aaaa"),
    "index digest a path": (shard(index_sha256="/etc/passwd"), "index_sha256 is '/etc/passwd'"),
    "digest null": (shard(sha256=None), "sha256 is None"),
    "name a path": (shard(name="../../etc/x"), r"name is '\.\./\.\./etc/x'"),
    "name empty": (shard(name=""), "name is ''"),
    "bytes 10^30": (shard(bytes=10**30), "bytes is 1000000000000000000000000000000"),
    "bytes negative": (shard(bytes=-1), "bytes is -1"),
    "a shard twice": (
        lambda manifest: manifest.update(shards=manifest["shards"] * 2, num_samples=8),
        "two shards have name shard-000000",
    ),
    "a shard under two names": (
        lambda manifest: manifest.update(
            shards=[*manifest["shards"], manifest["shards"][0] | {"name": "other"}], num_samples=8
        ),
        "two shards have sha256",
    ),
    "problems a list": (value(problems=[1]), "damaged manifest"),
    "problems nested": (value(problems={"image_empty": {"examples": [[[["x"]]]]}}), "problems: image_empty holds"),
    "no digest of the source": (value(source_digest=None), "source_digest is None"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    change, message = MANIFESTS[name]
    folder = write_dataset(tmp_path, SAMPLES, change_manifest=change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ManifestError, match=message) as refusal:
        ShardDataset(folder)
    assert len(str(refusal.value).splitlines()) == 1 and "build the dataset again" in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


@pytest.mark.parametrize("data", [b'{"format": ' + b"[" * 10**5, b'{"format": 1' + b"0" * 5000 + b"}", b"\xff", b"7"])
def test_a_manifest_that_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_bytes(data, "here")


def test_files_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, SAMPLES)
    os.truncate(folder / "shards" / "shard-000000.index", 20 * 10**9)
    with pytest.raises(UserError, match=r"index: 20,000,000,000 bytes are too many for such a file \(1,184\)"):
        ShardDataset(folder).index(0)
    os.truncate(folder / "manifest.json", 100 * 10**9)
    with pytest.raises(UserError, match=r"manifest\.json: 100,000,000,000 bytes are too many"):
        ShardDataset(folder)


@pytest.mark.parametrize("name", ["manifest.json", "shards/shard-000000.tar", "shards/shard-000000.index"])
def test_pipes_and_devices_are_not_read(tmp_path: Path, name: str) -> None:
    for number, make in enumerate((os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero"))):
        folder = write_dataset(tmp_path / str(number), SAMPLES)
        (folder / name).unlink()
        make(folder / name)
        for use in (lambda: ShardDataset(folder).read(0), lambda: open_verified(folder, CacheSettings(path=tmp_path))):  # noqa: B023
            with pytest.raises(UserError, match=r"missing|no such file"):
                use()


def rows(column: str, entry: int) -> Callable[[NDArray[Any]], None]:
    def change(table: NDArray[Any]) -> None:
        table[column][1] = entry

    return change


def far_apart(table: NDArray[Any]) -> None:
    table["json_offset"][1] = table["image_offset"][1] + 20 * 10**9


ROWS: dict[str, Callable[[NDArray[Any]], None]] = {
    "image offset 2^62": rows("image_offset", 2**62),
    "image offset 2^64 - 1": rows("image_offset", 2**64 - 1),
    "annotation offset 2^62": rows("json_offset", 2**62),
    "span of 20 GB": far_apart,
    "image of 4 GB": rows("image_bytes", 2**32 - 1),
    "annotation of 4 GB": rows("json_bytes", 2**32 - 1),
    "image at 0": rows("image_offset", 0),
    "annotation of another sample": rows("json_offset", 1024),
    "no width": rows("width", 0),
    "no height": rows("height", 0),
}


@pytest.mark.parametrize("name", ROWS)
def test_an_index_that_leaves_its_shard_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_dataset(tmp_path, SAMPLES, change_rows=ROWS[name])
    with pytest.raises(IndexFormatError, match="sample 1 cannot be where the index says") as refusal:
        open_verified(folder, CacheSettings(path=tmp_path / "cache"))
    assert len(str(refusal.value).splitlines()) == 1


INDEXES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "count 2^62": (lambda index: index[:8] + (2**62).to_bytes(8, "little") + index[16:], "it holds 4,611,686"),
    "count 0": (lambda index: index[:8] + bytes(8) + index[16:], "it holds 0 samples, not 4"),
    "cut": (lambda index: index[:100], "cut short: 100 bytes of"),
    "only its mark": (lambda index: index[:8], "it holds 0 samples"),
    "empty": (lambda index: b"", "no shard index"),
    "too few keys": (lambda index: index[:-8], "no 4 printable keys"),
    "an escape in a key": (lambda index: index[:-1] + b"\x1b", "no 4 printable keys"),
    "a key of megabytes": (lambda index: index + b"a" * 2**20, "too many for such a file"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    change, message = INDEXES[name]
    folder = write_dataset(tmp_path, SAMPLES, change_index=change)
    with pytest.raises(UserError, match=message) as refusal:
        open_verified(folder, CacheSettings(path=tmp_path / "cache"))
    assert len(str(refusal.value).splitlines()) == 1


def test_local_shards_are_verified_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = write_dataset(tmp_path / "data", SAMPLES), CacheSettings(path=tmp_path / "cache")
    read: list[str] = []
    problems = verification.digest_problems

    def counted(dataset: ShardDataset, entry: Any) -> Any:
        read.append(entry.name)
        return problems(dataset, entry)

    monkeypatch.setattr(verification, "digest_problems", counted)
    for _ in range(3):
        assert len(open_verified(folder, cache)) == 4
    assert read == ["shard-000000"], "the second start asks the note"
    tar = folder / "shards" / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ManifestError, match=r"shards/shard-000000\.tar has sha256 .*, the manifest says"):
        open_verified(folder, cache)
    tar.write_bytes(data[:-512])
    with pytest.raises(ManifestError, match=r"shard-000000\.tar has [0-9,]+ bytes, not"):
        open_verified(folder, cache)
    tar.unlink()
    with pytest.raises(ManifestError, match=r"shard-000000\.tar is missing; build the dataset again"):
        open_verified(folder, cache)


def test_a_cache_that_cannot_be_used_does_not_stop_local_data(tmp_path: Path) -> None:
    folder, cache = write_dataset(tmp_path / "data", SAMPLES), tmp_path / "cache"
    cache.symlink_to(tmp_path)
    assert len(open_verified(folder, CacheSettings(path=cache))) == 4


def test_a_note_of_a_build_with_another_digest_is_not_believed(tmp_path: Path) -> None:
    note = {"num_empty": 0, "num_crowds": 0, "source_bytes": 1, "class_counts": [1], "problem_counts": {},
            "problem_examples": {}, "entry": {"name": "x", "bytes": 4096, "sha256": "../x", "samples": 1,
            "index_sha256": "0" * 64}}  # fmt: skip
    assert _FinishedShard.from_note(json.dumps({"plan": "p", "shard": note}).encode(), "p") is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("e13b_offset_2pow62", ["shard-000000.index", "image_offset 4611686018427387904", "build the shards again"]),
        ("e15b_samples_1e15", ["manifest.json", "samples is 1000000000000000", "build the dataset again"]),
        ("e17_no_shards", ["manifest.json", "num_samples 4, but the shards hold 0", "build the dataset again"]),
    ],
)
def test_the_commands_refuse_on_one_line(
    capsys: pytest.CaptureFixture[str], test_data: Path, tmp_path: Path, name: str, parts: list[str]
) -> None:
    folder, results = str(test_data / "hostile2/shards" / name), tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 2, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9}]))
    for arguments in (["evaluate", str(results), folder], ["data", "anchors", folder, "--model", "yolov7-tiny"]):
        assert main(arguments) == 2
        errors = capsys.readouterr().err
        assert all(part in errors for part in parts) and len(errors.strip().splitlines()) == 1
    assert main(["data", "inspect", folder]) == (1 if "offset" in name else 2), "inspection counts damage of shards"
    assert parts[1] in capsys.readouterr().err


def test_the_sound_dataset_of_the_corpus_goes_through(capsys: pytest.CaptureFixture[str], test_data: Path) -> None:
    assert main(["data", "inspect", str(test_data / "hostile2/shards/e00_ok")]) == 0
    assert "every digest is right" in capsys.readouterr().out
    assert np.isfinite(open_verified(test_data / "hostile2/shards/e00_ok").index(0).rows["width"]).all()
