"""Checkpoints that lie about their size: refused within two seconds and 100 MB, in one line that names the file."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memory import bounded
from yolofleet.cli.main import main
from yolofleet.models import build_model
from yolofleet.models.checkpoint_reader import CheckpointError, read_checkpoint
from yolofleet.models.inert_pickle import MOST_OPCODES

MODULE = b"cm\nM\n)R"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
FEW = 1000


def number(value: int) -> bytes:
    data = value.to_bytes(200, "little", signed=True)
    return b"\x8a\xc8" + data


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def tensor(size: bytes = b"K\x10\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00") -> bytes:
    return TENSOR + b"(" + STORAGE + offset + size + stride + b"\x89}tR"


def shared_modules(levels: int, leaf: bytes = b"") -> bytes:
    parts = [MODULE, leaf, put(0), b"0"]
    for level in range(levels):
        children = b"}(" + text("a") + get(level) + text("b") + get(level) + b"u"
        parts += [MODULE, b"}", text("_modules"), children, b"sb", put(level + 1), b"0"]
    return b"".join([*parts, get(levels)])


PICKLES: dict[str, bytes] = {
    "a dictionary in itself": b"}q\x00" + text("model") + b"h\x00s",
    "shared modules": shared_modules(100),
    "shared modules with a weight": shared_modules(
        100, b"}" + text("_parameters") + b"}" + text("w") + tensor() + b"ssb"
    ),
    "a module in itself": MODULE + put(0) + b"}" + text("_modules") + b"}" + text("a") + get(0) + b"ssb",
    "a memo of 60 million": b"Nr" + struct.pack("<I", 60_000_000),
    "4 million sets": b"\x8f" * 4_000_000,
    "4 million dictionaries": b"}" * 4_000_000,
    "4 million marks": b"(" * 4_000_000,
    "300,000 names": b"".join(b"cm\nc%d\n" % index for index in range(300_000)),
    "300,000 objects": b"cm\nM\nq\x00" + b"h\x00)R" * 300_000,
    "100,000 tensors": b"".join([tensor(), b"0"]) * 100_000,
    "3,000 levels of dictionaries": (b"}" + text("model")) * 3000 + b"}" + b"s" * 3000,
    "100,000 levels of tuples as a key": b"})" + b"\x85" * 100_000 + b"Ns",
    "100,000 levels of lists": b"]" * 100_000 + b"a" * 99_999,
    "surrogates": b"}" + text("\ud800") + tensor() + b"s",
    "a name of control characters": b"}" + text("a\x1b[2J\n") + tensor() + b"s",
    "a long name": b"}" + text("a" * 900) + tensor() + b"s",
    "a long text": b"\x8d" + struct.pack("<Q", 2**62) + b"a",
    "a huge number as a size": tensor(number(2**1000) + b"\x85"),
    "sizes that multiply to zero": tensor((number(2**61) + b"K\x00") + b"\x86", b"K\x01K\x01\x86"),
    "a negative stride": tensor(stride=number(-1) + b"\x85"),
    "a stride beyond the storage": tensor(stride=number(2**40) + b"\x85"),
    "an offset beyond the storage": tensor(offset=number(2**61)),
    "a thousand sizes": tensor(b"(" + b"K\x01" * FEW + b"t", b"(" + b"K\x01" * FEW + b"t"),
    "a storage of 2**60": tensor().replace(b"K\x10tQ", b"\x8a\x08" + (2**60).to_bytes(8, "little") + b"tQ"),
    "a storage of -1": tensor().replace(b"K\x10tQ", b"\x8a\x01\xfftQ"),
    "a storage that is not there": tensor().replace(b"X\x01\x00\x00\x000", text("../../etc\ud800")),
    "a dictionary with items in its call": b"ccollections\nOrderedDict\n]\x85R",
    "a file of the system": b"(X\x04\x00\x00\x00fileX\x0b\x00\x00\x00/etc/passwdtQ",
    "a big name": b"c" + b"m" * 7_000_000 + b"\nM\n",
    "nothing": b"",
}  # fmt: skip


def archived(path: Path, pickled: bytes, storage: bytes = bytes(64)) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("archive/data/0", storage)
    return path


def refused(path: Path) -> str:
    """Return the message that refuses a file, one line within the bounds."""
    with bounded(), pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert path.name in message and message.isprintable()
    return message


@pytest.mark.parametrize("kind", PICKLES)
def test_a_hostile_pickle_is_refused(kind: str, tmp_path: Path) -> None:
    refused(archived(tmp_path / "bad.pt", PICKLES[kind]))


def test_the_pickles_are_otherwise_sound(tmp_path: Path) -> None:
    """The same parts make a checkpoint that is read: what is refused above is refused for what it claims."""
    leaf = b"}" + text("_parameters") + b"}" + text("w") + tensor() + b"ssb"
    assert set(read_checkpoint(archived(tmp_path / "dag.pt", shared_modules(3, leaf)))) == {
        f"{a}.{b}.{c}.w" for a in "ab" for b in "ab" for c in "ab"
    }
    read = read_checkpoint(archived(tmp_path / "good.pt", b"}" + text("w") + tensor() + b"s"))
    assert read["w"].shape == (16,)


def test_the_bounds_are_far_from_real_files() -> None:
    """The largest published model has a quarter of the opcodes that are read; its training state holds it twice."""
    with torch.device("meta"):
        model = build_model("yolov7-e6e")
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=2).dump(model)
    assert sum(1 for _ in pickletools.genops(buffer.getvalue())) < MOST_OPCODES / 4


def many_records_of_the_same_bytes(path: Path) -> None:
    """A million bytes, named two hundred times."""
    content = b"".join(
        text(f"w{index}")
        + tensor(number(250_000) + b"\x85")
        .replace(b"X\x01\x00\x00\x000", text(str(index)))
        .replace(b"K\x10tQ", b"\x8a\x04" + (250_000).to_bytes(4, "little") + b"tQ")
        for index in range(200)
    )
    archived(path, b"}(" + content + b"u", bytes(1_000_000))
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo("archive/data/0")
    with zipfile.ZipFile(path, "a") as archive:
        for index in range(1, 200):
            copy = zipfile.ZipInfo(f"archive/data/{index}")
            copy.file_size = copy.compress_size = record.file_size
            copy.header_offset, copy.CRC = record.header_offset, record.CRC
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
        archive._didModify = True  # type: ignore[attr-defined]


def lying_size(path: Path) -> None:
    archived(
        path,
        b"}" + text("w") + tensor().replace(b"K\x10tQ", b"\x8a\x05" + (2**33).to_bytes(5, "little") + b"tQ") + b"s",
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<II", 64, 64), struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)))


def a_million_records(path: Path) -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    path.write_bytes(directory + end)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))


def large_pickle(path: Path) -> None:
    archived(path, b"\x8d" + struct.pack("<Q", 100_000_000) + bytes(100_000_000))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


ARCHIVES: dict[str, Callable[[Path], Any]] = {
    "many records of the same bytes": many_records_of_the_same_bytes,
    "a size that lies": lying_size,
    "a million records": a_million_records,
    "a zip bomb": compressed,
    "a pickle of 100 MB": large_pickle,
    "a sparse file": sparse,
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_hostile_file_is_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    ARCHIVES[kind](path)
    refused(path)


def safetensors(header: Any, data: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(shape: list[Any], begin: int = 0, end: int = 0, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, bytes] = {
    "a header of 2**62": (2**62).to_bytes(8, "little") + b"{}",
    "a million tensors": safetensors({str(index): entry([0]) for index in range(200_000)}),
    "a shape that lies": safetensors({"w": entry([2**40], 0, 4)}, bytes(4)),
    "a shape that wraps": safetensors({"w": entry([2**32, 2**32], 0, 0)}),
    "an empty shape of much": safetensors({"w": entry([2**61, 2**61, 0])}),
    "tensors that overlap": safetensors({"v": entry([2], 0, 8), "w": entry([2], 4, 12)}, bytes(12)),
    "the same bytes twice": safetensors({"v": entry([2], 0, 8), "w": entry([2], 0, 8)}, bytes(8)),
    "a hole": safetensors({"w": entry([1], 4, 8)}, bytes(8)),
    "bytes left over": safetensors({"w": entry([1], 0, 4)}, bytes(8)),
    "negative sizes": safetensors({"w": entry([-1, -1], 0, 4)}, bytes(4)),
    "sizes as text": safetensors({"w": entry(["1"], 0, 4)}, bytes(4)),
    "a type that is none": safetensors({"w": entry([1], 0, 4, "F99")}, bytes(4)),
    "deep nesting": safetensors(b"[" * 100_000),
    "a list": safetensors([]),
    "numbers of 5,000 digits": safetensors(b'{"w": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"),
    "a name of control characters": safetensors({"\x1b[2J": entry([1], 0, 4)}, bytes(4)),
    "cut off": safetensors({"w": entry([1], 0, 4)}, bytes(4))[:-6],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(HEADERS[kind])
    refused(tmp_path / "bad.safetensors")


MESSAGES = {
    "k01_self_dict": "hold themselves",
    "k03_module_dag_100_noleaf": "more than 100,000 entries",
    "k04_long_binput_60M": "memo jumps from 0 to 60,000,000",
    "k22_nested_model_dicts": "nested more than 200 deep",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_command_that_imports_them(
    name: str, test_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("yolofleet.tracking.mlflow_store.check_reachable", lambda _: None)
    path = test_data / "hostile2" / "checkpoints" / f"{name}.pt"
    with bounded(seconds=5):  # the imports of the first one count
        code = main(["registry", "import", str(path), "--model", "yolov7-tiny", "--tracking-uri", "sqlite:///none.db"])
    error = capsys.readouterr().err
    assert code == 2
    assert f"{name}.pt" in error and MESSAGES[name] in error and "nothing in it was run" in error, error
    assert len(error.strip().splitlines()) == 1


def test_a_plain_module_is_still_read_at_every_protocol(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for protocol in range(2, 6):
        torch.save({"model": model}, tmp_path / "model.pt", pickle_protocol=protocol)
        assert set(read_checkpoint(tmp_path / "model.pt")) == set(model.state_dict())
