"""Scanning foreign tar shards in any state: the offsets of their members, and their damage.

Python's ``tarfile`` ends silently at a cut or damaged header; here the loss is counted. Nothing is unpacked: names are
opaque text, links and devices are never followed, and no size in a header is trusted beyond the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from yolofleet.data.problems import ProblemLog
from yolofleet.data.shard_writer import BLOCK_BYTES

_REGULAR = (b"0", b"\0", b"7")
_LONGEST_EXTENSION_BYTES = 1 << 20
_SKIP_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TarMember:
    """A regular file in an archive; ``data`` is held only where it was asked for."""

    name: str
    offset: int
    size_bytes: int
    data: bytes | None


@dataclass
class TarSample:
    """The parts of one sample: its image's member, its annotation."""

    key: str
    image: TarMember | None = None
    annotation: TarMember | None = None


def scan_samples(stream: BinaryIO, size_bytes: int, name: str, problems: ProblemLog) -> Iterator[TarSample]:
    """Yield the whole samples of an archive: an image and an annotation next to each other under one key.

    Args:
        stream: The archive, read from front to back.
        size_bytes: Its size.
        name: Name of the archive in messages.
        problems: Where everything else is counted.
    """
    sample: TarSample | None = None
    num_samples = 0
    for member in _members(stream, size_bytes, name, problems):
        key, extension = split_name(member.name)
        if extension is None:
            problems.add("member_ignored", f"{name}: {member.name!r}")
            continue
        if sample is not None and sample.key != key:
            num_samples += 1
            yield from _whole(sample, name, problems)
            sample = None
        sample = sample or TarSample(key)
        part = "annotation" if extension == "json" else "image"
        if getattr(sample, part) is not None:
            problems.add("sample_duplicate_member", f"{name}: {member.name!r} comes twice; the first one counts")
        else:
            setattr(sample, part, member)
    if sample is not None:
        num_samples += 1
        yield from _whole(sample, name, problems)
    if not num_samples:
        problems.add("shard_empty", name)


def split_name(name: str) -> tuple[str, str | None]:
    """Return a member's key and extension, split at the last dot; the extension is None for no part of a sample."""
    key, dot, extension = name.rpartition(".")
    extension = extension.lower()
    base = key.rsplit("/", 1)[-1]
    is_part = extension in ("json", "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")
    if not dot or not base or base.startswith("._") or not is_part:
        return name, None
    return key, extension


def _whole(sample: TarSample, name: str, problems: ProblemLog) -> Iterator[TarSample]:
    if sample.image is None:
        problems.add("sample_without_image", f"{name}: {sample.key!r} (the members of a sample must be adjacent)")
    elif sample.annotation is None:
        problems.add("sample_without_json", f"{name}: {sample.key!r} (the members of a sample must be adjacent)")
    else:
        yield sample


def _members(stream: BinaryIO, size_bytes: int, name: str, problems: ProblemLog) -> Iterator[TarMember]:
    offset = 0
    extension: dict[str, str] = {}
    while offset < size_bytes:
        header = _read(stream, BLOCK_BYTES)
        offset += len(header)
        if header.count(0) == len(header) and len(header) == BLOCK_BYTES:
            return  # the end-of-archive mark
        problem = _header_problem(header, offset == len(header))
        size = None if problem else _size_of(header)
        if problem or size is None:
            problems.add("shard_damaged", f"{name}: at byte {offset - len(header)}: {problem or 'damaged size'}")
            return
        kind = header[156:157]
        size = int(extension.get("size", size)) if kind in _REGULAR else size
        padded = size + (-size % BLOCK_BYTES)
        if offset + size > size_bytes:
            lost, left = extension.get("path") or _name_of(header), size_bytes - offset
            problems.add("shard_damaged", f"{name}: {lost!r} should have {size:,} bytes, the file ends after {left}")
            return
        if kind in (b"x", b"g", b"L"):
            data = _read(stream, padded)[:size] if size <= _LONGEST_EXTENSION_BYTES else _skip(stream, padded)
            if kind == b"x":
                extension |= _pax_records(data)
            elif kind == b"L":
                extension["path"] = data.rstrip(b"\0").decode(errors="replace")
        else:
            member_name = extension.pop("path", "") or _name_of(header)
            extension.clear()
            if kind in _REGULAR:
                wanted = member_name.lower().endswith(".json")
                data = _read(stream, padded)[:size] if wanted else _skip(stream, padded)
                yield TarMember(member_name, offset, size, data if wanted else None)
            else:
                problems.add("member_ignored", f"{name}: {member_name!r} is a link, folder or device")
                _skip(stream, padded)
        offset += padded


def _header_problem(header: bytes, is_first: bool) -> str | None:
    if is_first and header[:2] == b"\x1f\x8b":
        return "compressed with gzip; unpack it to a plain tar first (gunzip)"
    if len(header) < BLOCK_BYTES:
        return "the file ends inside a header"
    stored = header[148:156].strip(b" \0")
    computed = sum(header) - sum(header[148:156]) + 8 * 0x20
    try:
        is_right = int(stored, 8) == computed
    except ValueError:
        is_right = False
    if is_right:
        return None
    return "this is no tar file" if is_first else "damaged header (wrong checksum); what follows is lost"


def _size_of(header: bytes) -> int | None:
    field = header[124:136]
    if field[0] & 0x80:  # base 256, for members of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _name_of(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace")


def _pax_records(data: bytes) -> dict[str, str]:
    """Return path and size of a pax extended header: records of a length, a blank, ``key=value`` and a line end."""
    found: dict[str, str] = {}
    position = 0
    while position < len(data):
        length, _, _ = data[position:].partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            return found
        key, _, value = data[position + len(length) + 1 : position + int(length) - 1].partition(b"=")
        if key == b"path" or (key == b"size" and value.isdigit()):
            found[key.decode()] = value.decode(errors="replace")
        position += int(length)
    return found


def _read(stream: BinaryIO, length: int) -> bytes:
    parts = []
    while length > 0 and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _skip(stream: BinaryIO, length: int) -> bytes:
    while length > 0 and (part := stream.read(min(length, _SKIP_BLOCK_BYTES))):
        length -= len(part)
    return b""
