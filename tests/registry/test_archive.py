"""The archive of a version: the same files make the same bytes, Python imports from it, and nothing else is opened."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.registry.package import (
    ARCHIVE_NAME,
    CODE_IN_ARCHIVE,
    PackageError,
    _unpack,
    is_pickle,
    is_plain_archive,
    open_archive,
    pack_archive,
    remove_archived,
)

FILES = {
    "code/yolofleet_inference_0/__init__.py": "",
    "code/yolofleet_inference_0/core/__init__.py": "",
    "code/yolofleet_inference_0/core/answer.py": "ANSWER = 42\n",
    "evaluation/detections.safetensors": "boxes " * 99_999,  # more than a file object keeps in memory
    "evidence.json": "{}",
    "lineage/train.json": "[]",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "MLmodel").write_text("flavors: {}\n")
    pack_archive(folder)
    remove_archived(folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_packed_is_unpacked_and_packed_again_to_the_same_bytes(folder: Path) -> None:
    assert names(folder) == {"MLmodel", ARCHIVE_NAME}
    packed = (folder / ARCHIVE_NAME).read_bytes()
    open_archive(folder)
    assert {name: (folder / name).read_text() for name in FILES} == FILES
    for name in FILES:  # whoever wrote them, and when
        (folder / name).chmod(0o600)
        (folder / name).touch()
    pack_archive(folder)
    assert (folder / ARCHIVE_NAME).read_bytes() == packed


def test_python_imports_the_code_and_nothing_else(folder: Path) -> None:
    script = (
        "import importlib.util, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from yolofleet_inference_0.core.answer import ANSWER\n"
        "print(json.dumps([ANSWER, importlib.util.find_spec('lineage') is None]))"
    )
    command = [sys.executable, "-I", "-c", script, str(folder / CODE_IN_ARCHIVE)]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == [42, True]


def test_nothing_beside_an_archive_wins_over_what_is_in_it(folder: Path) -> None:
    (folder / "evidence.json").write_text("[another]")
    (folder / "code").mkdir()
    (folder / "code/extra.py").write_text("")
    open_archive(folder)
    assert (folder / "evidence.json").read_text() == "{}" and (folder / "code/extra.py").is_file()


def rewritten(change: Callable[[zipfile.ZipFile], object], **options: int) -> Callable[[bytes], bytes]:
    """A zip with the same members and something more."""

    def write(data: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", **options) as target:  # type: ignore[call-overload]
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
            change(target)
        return buffer.getvalue()

    return write


def member(name: str, *, times: int = 1) -> Callable[[bytes], bytes]:
    return rewritten(lambda target: [target.writestr(name, "x") for _ in range(times)])


def link(target: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("evaluation/link")
    entry.external_attr = 0o120777 << 16
    entry.extra = b"\x75\x78\x04\x00abcd"
    target.writestr(entry, "/etc/passwd")


def commented(target: zipfile.ZipFile) -> None:
    target.comment = b"x" * 30


def flipped(data: bytes) -> bytes:
    position = data.index(b"ANSWER = 42")
    return data[:position] + b"X" + data[position + 1 :]


def with_gap(data: bytes) -> bytes:
    """Room between the members and their list, where something may hide."""
    start = data.index(b"PK\1\2")
    end = data.rindex(b"PK\5\6")
    offset = int.from_bytes(data[end + 16 : end + 20], "little") + 4
    return data[:start] + b"hide" + data[start : end + 16] + offset.to_bytes(4, "little") + data[end + 20 :]


def endless_list(data: bytes) -> bytes:
    return data[:-10] + (2**32 - 1).to_bytes(4, "little") + data[-6:]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "compressed": rewritten(lambda target: None, compression=zipfile.ZIP_DEFLATED),
    "a name that leads out": member("code/../../evil.py"),
    "an absolute name": member("/tmp/evil.py"),
    "a name with a backslash": member("code\\evil.py"),
    "the weights": member("data/detector/model.safetensors"),
    "the proof": member("proof.json"),
    "compiled code": member("code/yolofleet_inference_0/core/answer.pyc"),
    "a library": member("code/yolofleet_inference_0/fast.so"),
    "a folder": member("code/empty/"),
    "a hidden file": member("evaluation/.hidden"),
    "a name that is not ASCII": member("evaluation/ünlü.json"),
    "the same name twice": member("lineage/val.json", times=2),
    "too many": lambda data: rewritten(
        lambda target: [target.writestr(f"lineage/{number}.json", "") for number in range(10_001)]
    )(data),
    "a link with a field of its own": rewritten(link),
    "a comment": rewritten(commented),
    "a changed byte": flipped,
    "something before it": lambda data: b"#!/bin/sh\n" + data,
    "something after it": lambda data: data + b"\0",
    "a gap": with_gap,
    "an endless list": endless_list,
    "the half of it": lambda data: data[: len(data) // 2],
    "nothing": lambda data: b"",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_yolofleet_does_not_write_is_left_packed(kind: str, folder: Path) -> None:
    archive = folder / ARCHIVE_NAME
    assert is_plain_archive(archive)
    changed = HOSTILE[kind](archive.read_bytes())
    archive.write_bytes(changed)
    open_archive(folder)
    assert names(folder) == {"MLmodel", ARCHIVE_NAME} and archive.read_bytes() == changed
    assert not is_plain_archive(archive) and not (folder.parent / "evil.py").exists()


def replaced(archive: Path, data: bytes) -> None:
    archive.unlink()
    archive.write_bytes(data)


def changed_in_place(archive: Path, data: bytes) -> None:
    with archive.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("change", [replaced, changed_in_place])
def test_an_archive_that_changes_while_it_is_read_writes_nothing_else(
    change: Callable[[Path, bytes], None], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim.py").write_text("of the user")
    archive = folder / ARCHIVE_NAME
    hostile = rewritten(lambda target: target.writestr(str(tmp_path / "victim.py"), "x"))(archive.read_bytes())
    checked = zipfile.ZipFile.testzip

    def testzip(self: zipfile.ZipFile) -> str | None:
        bad = checked(self)
        change(archive, flipped(hostile))
        return bad

    monkeypatch.setattr(zipfile.ZipFile, "testzip", testzip)
    if change is changed_in_place:
        with pytest.raises(PackageError, match="changed while it was read"):
            open_archive(folder)
    else:
        open_archive(folder)
        assert {name: (folder / name).read_text() for name in FILES} == FILES
    assert (tmp_path / "victim.py").read_text() == "of the user"


@pytest.mark.parametrize("name", ["/tmp/evil.py", "../evil.py", "code/../../evil.py", "proof.json"])
def test_unpacking_checks_the_names_itself(name: str, folder: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr(name, "x")
    with zipfile.ZipFile(buffer) as archive, pytest.raises(PackageError, match="is no name in an archive"):
        _unpack(archive, folder)
    assert names(folder.parent) == {f"version/{name}" for name in ("MLmodel", ARCHIVE_NAME)}


@pytest.mark.parametrize("link", ["code", "code/yolofleet_inference_0", "evaluation"])
def test_unpacking_follows_no_link_out_of_the_folder(link: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(outside)
    with pytest.raises(PackageError, match="is in the way"):
        open_archive(folder)
    assert not names(outside)


def test_a_zip_of_a_pickle_under_the_name_of_the_archive_stays_a_pickle(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({}, tmp_path / "state.pt")
    shutil.copy(tmp_path / "state.pt", folder / ARCHIVE_NAME)
    assert is_pickle(folder / ARCHIVE_NAME) and not is_plain_archive(folder / ARCHIVE_NAME)
