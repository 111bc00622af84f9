"""Objects at file paths and URLs: what is written is read, and what cannot be has an error with its cure."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.storage import ObjectNotFoundError, Storage, StorageError, check_key, open_storage


def test_objects_are_written_listed_read_and_deleted(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "root")
    storage.put("b/two", b"22")
    storage.put("a", b"1")
    (tmp_path / "local").write_bytes(b"three")
    storage.put("b/three", tmp_path / "local")
    assert [(entry.key, entry.size_bytes) for entry in storage.list()] == [("a", 1), ("b/three", 5), ("b/two", 2)]
    assert [entry.key for entry in storage.list("b/t")] == ["b/three", "b/two"]
    assert storage.get_range("b/three", 1, 3) == b"hre"
    assert storage.child("b").get("two") == b"22"
    with storage.open_stream("b/three") as stream:
        assert stream.read() == b"three"
    storage.delete_prefix("b/")
    assert [entry.key for entry in storage.list()] == ["a"]
    assert not (tmp_path / "root" / "b").exists()


def test_an_object_is_read_from_any_byte_to_its_end(storage: Storage) -> None:
    storage.put("rows", b"0123456789")
    assert [storage.get_from("rows", start) for start in (0, 4, 9, 10, 12)] == [
        b"0123456789",
        b"456789",
        b"9",
        b"",
        b"",
    ]
    with pytest.raises(ObjectNotFoundError):
        storage.get_from("nothing", 3)


def test_an_object_is_written_once_only_where_asked(tmp_path: Path) -> None:
    storage = open_storage(f"file://{tmp_path}")
    assert storage.put_if_absent("lock", b"first")
    assert not storage.put_if_absent("lock", b"second")
    assert storage.get("lock") == b"first"


def test_missing_and_short_objects_are_errors(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    with pytest.raises(ObjectNotFoundError, match="no such file"):
        storage.get("nothing")
    assert not storage.exists("nothing")
    storage.delete("nothing")
    storage.put("short", b"ab")
    with pytest.raises(StorageError, match="ends after 1"):
        storage.get_range("short", 1, 5)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "a\\b", "a\0b", "./a"])
def test_keys_stay_below_the_root(key: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        open_storage(tmp_path).put(key, b"")


@given(st.lists(st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_plain_keys_pass_unchanged(parts: list[str]) -> None:
    key = "/".join(part if part not in (".", "..") else "x" for part in parts)
    assert check_key(key) == key


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "s3://", "file://host/x", "s3://[x/d", "s3://[bucket]/runs", "file://[/x"]
)
def test_urls_that_cannot_be_served_are_refused(url: str) -> None:
    with pytest.raises(StorageError):
        open_storage(url)


def test_unreachable_s3_is_an_error_within_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(
        StorageError, match=r"s3://bucket/x: reading got no answer from http://127\.0\.0\.1:9"
    ) as caught:
        open_storage("s3://bucket", patience_seconds=0.3).get("x")
    assert caught.value.transient


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for storage in (open_storage(tmp_path / "file"), open_storage(tmp_path / "file" / "below")):
        with pytest.raises(StorageError, match=r"file is a file, not a folder; choose another folder"):
            storage.put("lock/one", b"1")
    with pytest.raises(StorageError, match="is a folder, so no file can be written there"):
        open_storage(tmp_path.parent).put(tmp_path.name, b"1")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_file_system_without_folders_is_an_error() -> None:
    with pytest.raises(StorageError, match=r"/proc/nothing.*cannot be made.*choose a folder that can be written"):
        open_storage("/proc/nothing").put("one", b"1")


def test_nothing_is_written_or_removed_through_a_link_that_leads_out(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "disk/run"
    outside.mkdir()
    (outside / "mine").write_bytes(b"mine")
    root.mkdir(parents=True)
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "mine")
    (root / "inside").mkdir()
    (root / "near").symlink_to("inside")
    (tmp_path / "link").symlink_to(root)
    for storage in (open_storage(root), open_storage(tmp_path / "link"), open_storage(tmp_path).child("link")):
        confined = storage.confined()
        for write in (storage.put, storage.put_if_absent, confined.child("folder").put):
            with pytest.raises(StorageError, match="a link leads out of"):
                write("folder/mine" if write.__self__ is storage else "mine", b"other")
        with pytest.raises(StorageError, match="a link leads out of"):
            storage.delete("folder/mine")
        assert storage.get("file") == b"mine", "shards may lie on another disk"
        for read in (confined.get, confined.open_stream, confined.size_bytes, confined.local_path):
            with pytest.raises(StorageError, match="a link leads out of"):
                read("file")
        with pytest.raises(StorageError, match="a link leads out of"):
            confined.list("folder/")
        confined.put("near/one", b"1")
        assert (root / "inside/one").read_bytes() == b"1"
    open_storage(root).confined().put("file", b"other")
    open_storage(root).confined().delete("file")
    assert not (root / "file").is_symlink() and (outside / "mine").read_bytes() == b"mine"
    assert [*outside.iterdir()] == [outside / "mine"]


def test_no_folder_is_made_for_a_key_that_leads_out(tmp_path: Path) -> None:
    for key in ("model/../../escaped/x", "model//x/y"):
        with pytest.raises(StorageError, match="not a plain relative path"):
            open_storage(tmp_path).download(key, tmp_path / "copy/deep" / key.removeprefix("model/"))
    assert [*tmp_path.iterdir()] == []


def test_a_bucket_lists_no_impossible_key_or_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from yolofleet.storage import s3

    at = datetime(2026, 1, 1, tzinfo=UTC)
    sizes = {"run/a": 1, "run/../b": 1, "run//b": 1, "run/b\\c": 1, "else/d": 1, "run/e": -5, "run/f": 10**30}
    page = {"Contents": [{"Key": key, "Size": size, "LastModified": at} for key, size in sizes.items()]}
    client = SimpleNamespace(get_paginator=lambda name: SimpleNamespace(paginate=lambda **given: [page]))
    monkeypatch.setattr(s3, "_client", lambda: client)
    assert [entry.key for entry in open_storage("s3://bucket/run").list()] == ["a"]
