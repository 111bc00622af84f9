"""The folder of the shard cache: this user's alone, and nothing outside of it is ever opened."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from yolofleet.data.cache import ShardCache
from yolofleet.data.cache_folder import CacheError, CacheSettings, own_folder, verified_note
from yolofleet.data.dataset import ShardDataset
from yolofleet.storage import open_storage


def opened(path: Path) -> ShardCache:
    return ShardCache(CacheSettings(path=path, patience_seconds=0.1))


def fetched(shards: Path, cache: ShardCache) -> bytes:
    entry = ShardDataset(shards).manifest.shards[0]
    descriptor = cache.open(open_storage(shards), entry)
    try:
        return os.pread(descriptor, entry.bytes, 0)
    finally:
        os.close(descriptor)


def test_a_new_folder_is_made_for_this_user_alone(shards: Path, tmp_path: Path) -> None:
    data = fetched(shards, opened(tmp_path / "made" / "here"))
    assert data == (shards / "shards" / "shard-000000.tar").read_bytes()
    assert stat.S_IMODE((tmp_path / "made" / "here").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "made" / "here" / "lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(
        CacheError, match=rf"cache\.path .*cache: can be used by others \(mode {mode:04o}\); name a folder"
    ):
        opened(folder)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711])
def test_a_folder_that_others_can_read_becomes_private_only_where_it_is_a_cache(
    shards: Path, tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "cache"
    fetched(shards, opened(folder))
    (folder / "locks").mkdir()  # of an older version
    folder.chmod(mode)
    fetched(shards, opened(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "photos").mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheError, match="can be used by others"):
        opened(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode, "a folder of other things is left as it is"


@pytest.mark.parametrize("inner", ["", "verified"])
def test_a_link_is_refused(tmp_path: Path, inner: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "cache").mkdir(mode=0o700) if inner else None
    (tmp_path / "cache" / inner).symlink_to(elsewhere)
    with pytest.raises(CacheError, match="is a link; name a folder that does not exist yet"):
        verified_note(tmp_path / "cache", "0" * 64)
    assert not list(elsewhere.iterdir())


def test_a_link_to_nowhere_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file", "file/below"):
        with pytest.raises(CacheError, match="cannot be made"):
            opened(tmp_path / name)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(CacheError, match=rf"belongs to user {owner}, not to {owner + 1}; name a folder"):
        own_folder(tmp_path)


def test_the_lock_is_neither_followed_nor_truncated(shards: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep me")
    cache = opened(tmp_path / "cache")
    lock = tmp_path / "cache" / "lock"
    lock.symlink_to(secret)
    with pytest.raises(CacheError, match=r"cannot be opened .*symbolic link.*remove it"):
        fetched(shards, cache)
    assert secret.read_text() == "keep me"
    lock.unlink()
    os.link(secret, lock)
    fetched(shards, cache)
    assert secret.read_text() == "keep me"


@pytest.mark.parametrize("suffix", ["tar", "part"])
def test_a_link_in_place_of_a_shard_is_not_opened(shards: Path, tmp_path: Path, suffix: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep me")
    cache, entry = opened(tmp_path / "cache"), ShardDataset(shards).manifest.shards[0]
    (tmp_path / "cache" / f"{entry.sha256}.{suffix}").symlink_to(secret)
    if suffix == "tar":
        with pytest.raises(CacheError, match=r"cannot be opened .*symbolic link.*remove it"):
            fetched(shards, cache)
    else:
        fetched(shards, cache)
    assert secret.read_text() == "keep me"


def test_only_the_bytes_that_are_there_are_reserved(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number the manifest holds: 1 TB neither takes room on the disk nor evicts what is cached."""
    entry = ShardDataset(shards).manifest.shards[0]
    reserved: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, offset, size: reserved.append(size))
    os.close(opened(tmp_path / "cache").open(open_storage(shards), replace(entry, bytes=2**40)))
    assert reserved == [entry.bytes]
