"""Tars that somebody made to hurt: their damage is counted, and costs no more than the samples that it touches."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.data.check import check_dataset
from yolofleet.data.problems import LONGEST_EXAMPLE, ProblemLog
from yolofleet.data.read_source import read_source

SAMPLE = {"image_id": 5, "boxes": [[1, 2, 20, 20]], "classes": [0], "width": 64, "height": 48}


def image_bytes() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 20, 200)).save(data, "JPEG")
    return data.getvalue()


def member(name: str | bytes, data: bytes, kind: bytes = b"0", size: bytes | None = None) -> bytearray:
    """Return one member of a tar with a right checksum, whatever else is wrong with it."""
    header = bytearray(512)
    text = name.encode() if isinstance(name, str) else name
    header[: len(text)] = text
    header[100:108], header[156:157], header[257:265] = b"0000644\0", kind, b"ustar\00000"
    header[124:136] = size if size is not None else b"%011o\0" % len(data)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header + data + bytes(-len(data) % 512)


def sample(key: str | bytes, **changes: Any) -> bytearray:
    key = key.encode() if isinstance(key, str) else key
    return member(key + b".jpg", image_bytes()) + member(key + b".json", json.dumps(SAMPLE | changes).encode())


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytearray:
    lines = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + next(digits for digits in range(1, 9) if len(str(len(body) + digits)) == digits)
        lines += str(length).encode() + body
    return member("pax", lines, kind)


def read_tar(tmp_path: Path, *parts: bytes) -> tuple[int, ProblemLog]:
    """Return the usable samples of an archive of these parts, and the problems."""
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(parts) + bytes(1024))
    problems = ProblemLog()
    source, images = read_source(str(path), None, problems)
    return check_dataset(source, images, problems).num_usable, problems


@pytest.mark.parametrize(
    ("name", "kind", "example", "num_samples"),
    [
        ("r01_pax_size_5000digits.tar", "shard_damaged", r"at byte 18944: damaged size", 1),
        ("r03b_negative_size_pair.tar", "shard_damaged", r"at byte 13312: damaged size", 1),
        ("r07_image_id_1e30.tar", "image_id_renumbered", r"'a': id 1(0+|e\+30)", 2),
    ],
)
def test_the_tars_of_the_corpus_are_built_without_what_is_wrong(
    test_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    kind: str,
    example: str,
    num_samples: int,
) -> None:
    archive = test_data / "hostile2" / "tars" / name
    assert main(["data", "shard", str(archive), "-", str(tmp_path / "out"), "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["problems"]
    assert counted[kind]["count"] == 1
    assert re.search(example, counted[kind]["examples"][0])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_samples"] == num_samples


@pytest.mark.parametrize(
    "header",
    [
        pax((b"size", b"9" * 5000)) + member("b.jpg", b"x"),
        pax((b"size", b"-5")) + member("b.jpg", b"x"),
        pax((b"size", "²".encode())) + member("b.jpg", b"x"),
        pax((b"size", b"1e3")) + member("b.jpg", b"x"),
        pax((b"size", b"")) + member("b.jpg", b"x"),
        pax((b"size", b"9" * 19)) + member("b.jpg", b"x"),
        member("b.jpg", b"x", size=b"-0000000007\0"),
        member("b.jpg", b"x", size=b"-7777777777\0"),
        member("b.jpg", b"x", size=b"\xff" * 12),
        member("b.jpg", b"x", size=b"\xff" * 11 + b"\x00"),
        member("b.jpg", b"x", size=b"\x80" + b"\xff" * 11),
        member("b.jpg", b"x", size=b"0x000000001\0"),
        member("b.jpg", b"x", size=b"0_000000001\0"),
        member("b.jpg", b"x", size=b"+0000000001\0"),
        member("b.jpg", b"x", size=b"77777777777\0"),
        member("long", b"x", kind=b"L", size=b"77777777777\0"),
        member("long", b"x", kind=b"x", size=b"-0000000001\0"),
    ],
)
def test_a_size_that_is_none_ends_its_tar_and_keeps_what_came_before(tmp_path: Path, header: bytes) -> None:
    num_usable, problems = read_tar(tmp_path, sample("a"), header, sample("c"))
    assert num_usable == 1 and problems.counts == {"shard_damaged": 1}
    assert "x.tar: " in problems.examples["shard_damaged"][0]


@pytest.mark.parametrize(
    ("records", "is_long"),
    [
        (b"5 a=\n" * 209_000, True),
        (b"1" * 5000 + b" path=b.jpg\n", False),
        (b"0 path=b.jpg\n", False),
        (b"3 path=b.jpg\n", False),
        (b"9999999 path=b.jpg\n", False),
        (b"-5 path=b.jpg\n", False),
        ("²² path=b.jpg\n".encode(), False),
        (b"\0" * 1000, False),
        (b" " * (1 << 20), True),
        (b"9" * (1 << 20), True),
    ],
)
def test_pax_records_that_make_no_sense_are_passed_in_linear_time(
    tmp_path: Path, records: bytes, is_long: bool
) -> None:
    start = time.process_time()
    num_usable, problems = read_tar(tmp_path, member("pax", records, b"x"), sample("a"))
    assert num_usable == 1 and problems.num(["drop"]) == 0 and time.process_time() - start < 1
    assert len(records) > 1 << 19 or not is_long


@pytest.mark.parametrize(
    ("parts", "num_usable", "counts"),
    [
        ([member("l", b"", b"2"), sample("a")], 1, {"member_ignored": 1}),
        ([member("l.jpg", b"", b"1", size=b"00000007777\0"), sample("a")], 1, {"member_ignored": 1}),
        ([member("l.json", b"", b"2", size=b"77777777777\0"), sample("a")], 1, {"member_ignored": 1}),
        ([member("d/", b"", b"5", size=b"00000001000\0"), sample("a")], 1, {"member_ignored": 1}),
        (
            [member("p", b"", b"6"), member("c", b"", b"3"), member("b", b"", b"4"), sample("a")],
            1,
            {"member_ignored": 3},
        ),
        ([member("s.jpg", b"x" * 600, b"S"), sample("a")], 1, {"member_ignored": 1}),
        ([pax((b"GNU.sparse.major", b"1")), member("s.jpg", b"x"), sample("a")], 1, {"member_ignored": 1}),
        ([member("v", b"label", b"V"), member("m", b"more" * 200, b"M"), sample("a")], 1, {"member_ignored": 2}),
        ([sample("./a"), sample("b//c"), sample("/d"), sample("../e"), sample("f/../g")], 5, {}),
        ([sample("a"), sample("a")], 1, {"sample_duplicate_member": 2}),
        ([sample("a"), sample("b"), sample("a")], 3, {}),
        ([sample(b"a\xff"), sample(b"a\xfe")], 2, {}),
        ([member(b"a\xff.jpg", b"x"), member(b"a\xfe.json", b"{}"), sample("a")], 1, None),
        ([sample("a\\b"), sample("..\\c")], 2, {}),
        ([member("long", b"d/" * 90 + b"a.jpg\0", b"L"), sample("a")], 0, None),
        ([member("long", b"", b"L"), sample("a")], 1, {}),
        ([member("long", b"\0" * 300, b"L"), sample("a")], 1, {}),
        ([member("long", b"x" * (2 << 20), b"L"), sample("a")], 1, {"member_ignored": 1}),
        ([member("long", b"a.jpg" * 2000, b"L"), member("x", b"x"), sample("a")], 1, {"member_ignored": 1}),
        (
            [member("l", b"a.jpg\0", b"L"), member("k", b"x" * 200, b"K"), member("x", image_bytes()), sample("b")],
            1,
            {"sample_without_json": 1},
        ),
        ([pax((b"path", b"z.jpg"), kind=b"g"), sample("a")], 1, {}),
        ([pax((b"path", b"a\xff.jpg"), (b"size", b"%d" % len(image_bytes()))), sample("a")], 0, None),
        ([*(pax((b"path", b"%d" % number)) for number in range(500)), sample("a")], 0, None),
        ([sample("a", image_id=10**30), sample("b")], 2, {"image_id_renumbered": 1}),
        ([sample("a", image_id=[1]), sample("b", image_id="x")], 2, {"image_id_renumbered": 2}),
        ([sample("a", classes=[10**30]), sample("b")], 2, {"category_malformed": 1}),
        ([sample("a", classes=[True])], 1, {"category_malformed": 1}),
        ([sample("a", width=10**30)], 1, {}),
        ([sample("a", boxes=[[1, 2, 1e200, 1e200]])], 1, {"box_not_finite": 1}),
        ([sample("a", boxes="abcd", classes=[1, 1, 1, 1])], 1, {"box_malformed": 4}),
        ([sample("a", boxes=None), sample("b")], 1, {"sample_json_damaged": 1}),
        (
            [member("a.jpg", image_bytes()), member("a.json", b"[" * 100_000), sample("b")],
            1,
            {"sample_json_damaged": 1},
        ),
        (
            [member("a.jpg", image_bytes()), member("a.json", b'{"image_id": ' + b"9" * 5000 + b"}"), sample("b")],
            1,
            {"sample_json_damaged": 1},
        ),
        (
            [member("a.jpg", image_bytes()), member("a.json", b"\xff\xfe{}"), sample("b")],
            1,
            {"sample_json_damaged": 1},
        ),
        (
            [member("a.jpg", image_bytes()), member("a.json", b" " * (9 << 20)), sample("b")],
            1,
            {"member_ignored": 1, "sample_without_json": 1},
        ),
    ],
)
def test_hostile_members_cost_no_more_than_their_sample(
    tmp_path: Path, parts: Iterable[bytes], num_usable: int, counts: dict[str, int] | None
) -> None:
    start = time.process_time()
    parts = [*parts, sample("zz")]
    usable, problems = read_tar(tmp_path, *parts)
    assert usable == num_usable + 1
    assert counts is None or problems.counts == counts
    assert time.process_time() - start < 2
    for examples in problems.examples.values():
        assert all(example.isprintable() and len(example) < 2 * LONGEST_EXAMPLE for example in examples)


def test_an_ordinary_tar_of_any_format_is_read_whole(tmp_path: Path) -> None:
    """What Python writes: long names and names that are not ASCII, in each of its formats."""
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for key in ("./é" * 20, "x" * 60 + "/" + "y" * 80, "plain"):
                for name, data in ((f"{key}.jpg", image_bytes()), (f"{key}.json", json.dumps(SAMPLE).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
        problems = ProblemLog()
        source, images = read_source(str(path), None, problems)
        assert check_dataset(source, images, problems).num_usable == 3 and not problems.counts
