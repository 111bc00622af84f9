from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from yolofleet.data.annotation import read_annotation
from yolofleet.data.build import BuildError
from yolofleet.data.build_plan import image_key, in_split
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import decode_image
from yolofleet.data.manifest import Manifest, ManifestError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.shard_writer import sample_key, tar_header
from yolofleet.storage import open_storage

Build = Callable[..., ProblemLog]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_builds_are_equal_byte_for_byte(build: Build, drawn: Path, shards: Path, tmp_path: Path) -> None:
    build(drawn / "instances.json", drawn / "images", tmp_path, shard_samples=7)
    assert digests(tmp_path) == digests(shards)
    assert ShardDataset(tmp_path).manifest.digest == ShardDataset(shards).manifest.digest


def test_samples_are_the_source_unchanged(drawn: Path, dataset: ShardDataset) -> None:
    document = json.loads((drawn / "instances.json").read_text())
    assert [entry.samples for entry in dataset.manifest.shards] == [7, 7, 7, 7, 7, 7, 3]
    for number, image in enumerate(document["images"]):
        sample = dataset.read(number)
        assert sample.image == (drawn / "images" / image["file_name"]).read_bytes()
        assert dataset.read_record(number)[1].image_id == image["id"]
    assert dataset.classes == [(2, "disc"), (5, "triangle"), (11, "cross")]
    ours = dataset.annotations()
    fields = ("image_id", "category_id", "bbox", "area", "iscrowd")
    assert [[entry[name] for name in fields] for entry in ours["annotations"]] == [
        [entry[name] for name in fields] for entry in document["annotations"]
    ]


def test_any_webdataset_reader_reads_the_shards(shards: Path, dataset: ShardDataset) -> None:
    urls = [str(path) for path in sorted((shards / "shards").glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [entry["__key__"] for entry in theirs] == [key for key, _ in dataset.records()]
    for number, entry in enumerate(theirs):
        assert entry["jpg"] == dataset.read(number).image and json.loads(entry["json"])["image_id"] == number + 1


def test_tarfile_reads_the_shards(shards: Path) -> None:
    with tarfile.open(shards / "shards" / "shard-000000.tar") as archive:
        members = archive.getmembers()
    assert len(members) == 14 and all(member.isreg() and member.mtime == 0 for member in members)


def test_the_same_build_again_does_nothing_and_another_needs_permission(
    build: Build, drawn: Path, tmp_path: Path
) -> None:
    build(drawn / "instances.json", drawn / "images", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    build(drawn / "instances.json", drawn / "images", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(BuildError, match=r"holds another dataset already \(45 images\).*--overwrite"):
        build(drawn / "instances_val.json", drawn / "images", tmp_path)
    assert len(ShardDataset(tmp_path)) == 45


KILLED_BUILD = """
import sys, time
from pathlib import Path
from yolofleet.data import build as module
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.storage import open_storage
drawn, out = Path(sys.argv[1]), sys.argv[2]
problems = ProblemLog()
source = parse_coco((drawn / "instances.json").read_bytes(), "instances.json", problems)
def slow(count):
    print("image", flush=True)
    time.sleep(0.02)
options = BuildOptions(shard_samples=7, shuffle=False)
module.build_dataset(source, open_storage(drawn / "images"), open_storage(out), options, problems, progress=slow)
"""


def test_a_killed_build_resumes_where_it_stopped(build: Build, drawn: Path, shards: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_BUILD, str(drawn), str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
    )
    assert process.stdout is not None
    for _ in range(24):  # into the fourth shard
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ManifestError, match="run the build again if it was interrupted"):
        ShardDataset(tmp_path)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    assert len(finished) >= 3
    time.sleep(0.01)
    build(drawn / "instances.json", drawn / "images", tmp_path, shard_samples=7)
    assert digests(tmp_path) == digests(shards), "the outcome is that of an undisturbed build, and no note is left"
    kept = [name for name, changed in finished.items() if (tmp_path / "shards" / name).stat().st_mtime_ns == changed]
    assert len(kept) >= 3


def test_a_changed_image_is_built_anew(build: Build, drawn: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images"
    copy.mkdir()
    for path in (drawn / "images").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    build(drawn / "instances.json", copy, tmp_path / "out", shard_samples=7)
    (copy / "000000.jpg").write_bytes((copy / "000001.jpg").read_bytes())
    with pytest.raises(BuildError, match="another dataset"):
        build(drawn / "instances.json", copy, tmp_path / "out", shard_samples=7)


def test_splits_by_the_hash_of_the_id_share_nothing_and_miss_nothing(build: Build, drawn: Path, tmp_path: Path) -> None:
    build(drawn / "instances.json", drawn / "images", tmp_path / "a", split=(0.0, 0.7))
    build(drawn / "instances.json", drawn / "images", tmp_path / "b", split=(0.7, 1.0))
    parts = [{record.image_id for _, record in ShardDataset(tmp_path / part).records()} for part in "ab"]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 45 and len(parts[0]) > len(parts[1]) > 3
    shares = np.mean([in_split(image_id, (0.2, 0.5)) for image_id in range(5000)])
    assert shares == pytest.approx(0.3, abs=0.02)


def test_reencoding_is_smaller_and_moves_the_boxes_along(build: Build, drawn: Path, tmp_path: Path) -> None:
    build(drawn / "instances.json", drawn / "images", tmp_path, reencode_quality=60, longest_side=48)
    small, document = ShardDataset(tmp_path), json.loads((drawn / "instances.json").read_text())
    for number, image in enumerate(document["images"]):
        _, record, pixels, _ = small.read_decoded(number)
        assert max(record.width, record.height) == 48
        assert pixels.shape == (record.height, record.width, 3)
        boxes = [entry["bbox"] for entry in document["annotations"] if entry["image_id"] == image["id"]]
        gain = np.array([record.width / image["width"], record.height / image["height"]] * 2)
        assert np.allclose(record.boxes, np.array(boxes).reshape(-1, 4) * gain)
    small_bytes = sum(len(small.read(number).image) for number in range(len(small)))
    assert small_bytes < 0.5 * sum(path.stat().st_size for path in (drawn / "images").iterdir())


def test_shuffled_shards_hold_everything_and_an_image_keeps_its_neighbours(
    build: Build, drawn: Path, tmp_path: Path
) -> None:
    build(drawn / "instances.json", drawn / "images", tmp_path / "all", shuffle=True)
    build(drawn / "instances_train.json", drawn / "images", tmp_path / "train", shuffle=True)
    ids = {
        part: [record.image_id for _, record in ShardDataset(tmp_path / part).records()] for part in ("all", "train")
    }
    assert sorted(ids["all"]) == list(range(1, 46)) and ids["all"] != sorted(ids["all"])
    assert [identity for identity in ids["all"] if identity % 5] == ids["train"], "what is removed moves nothing else"


@pytest.mark.parametrize(
    ("file_name", "key"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b.jpg", "a/b.jpg"),
        ("../b.jpg", None),
        ("a/../../b.jpg", None),
        ("/etc/hostname", None),
        ("C:\\x.jpg", None),
        ("..\\x.jpg", None),
        ("a..b.jpg", "a..b.jpg"),
    ],
)
def test_file_names_stay_in_their_folder(file_name: str, key: str | None) -> None:
    assert image_key(file_name) == key


def test_keys_are_plain_and_recognisable() -> None:
    assert sample_key(7, "train/a.b.c.jpg") == "000000007-a-b-c"
    assert sample_key(7, "图片.jpg") == "000000007"
    assert len(sample_key(7, "x" * 300 + ".jpg")) < 60


def test_tar_headers_equal_those_of_tarfile() -> None:
    info = tarfile.TarInfo("000001-name.jpg")
    info.size, info.mode, info.mtime = 12345, 0o644, 0
    ours, theirs = tar_header("000001-name.jpg", 12345), info.tobuf(tarfile.USTAR_FORMAT)
    assert len(ours) == 512
    read = tarfile.TarInfo.frombuf(ours, "utf-8", "strict")
    assert (read.name, read.size, read.mode, read.mtime, read.isreg()) == (info.name, 12345, 0o644, 0, True)
    assert theirs[124:136] == ours[124:136]


def test_manifests_of_another_format_are_refused_with_the_cure(shards: Path, tmp_path: Path) -> None:
    document = json.loads((shards / "manifest.json").read_text())
    for change, message in (({"format": 2}, "update yolofleet"), ({"shards": None}, "damaged manifest")):
        (tmp_path / "manifest.json").write_text(json.dumps(document | change))
        with pytest.raises(ManifestError, match=message):
            ShardDataset(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ManifestError, match="no manifest"):
        Manifest.read(open_storage(tmp_path))


def test_records_survive_json_exactly() -> None:
    record = ImageRecord(
        3,
        "é.jpg",
        10,
        20,
        np.array([[0.1, 0.2, 1 / 3, 1e-2]]),
        np.array([2]),
        np.array([True]),
        np.array([0.1]),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]],),
    )
    again = read_annotation(record.to_json(), 3)
    assert (again.boxes == record.boxes).all() and again.segmentations == record.segmentations and again.iscrowd.all()
    assert again.to_json() == record.to_json()


def test_images_come_out_of_shards_as_they_were(drawn: Path, dataset: ShardDataset) -> None:
    sample = dataset.read(11)
    direct = decode_image((drawn / "images" / "000011.jpg").read_bytes())
    assert (dataset.read_decoded(11).pixels == direct).all()
    assert io.BytesIO(sample.image).read(2) == b"\xff\xd8"
