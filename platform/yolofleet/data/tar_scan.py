r"""Scanning foreign tar shards in any state: the offsets of their members, and their damage.

Python's ``tarfile`` ends silently at a cut or damaged header; here the loss is counted. Nothing is unpacked: names are
opaque text, links and devices are never followed, and no size in a header is trusted beyond the end of the file.
Names are compared by their bytes, and have ``\x..`` where these are not UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from yolofleet.core.text import plural, short
from yolofleet.data.problems import ProblemLog
from yolofleet.data.shard_writer import BLOCK_BYTES
from yolofleet.data.source_folder import IMAGE_EXTENSIONS, is_litter

_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes: no data follows, whatever size their header names."""
_EXTENSIONS = (b"x", b"g", b"L", b"K")
"""Headers before a member: pax records for it or for all, its long name, the long name that it links to."""
_SPARSE = b"S"
_LONGEST_EXTENSION_BYTES = 1 << 20
_LONGEST_NAME_BYTES = 4096
_LONGEST_JSON_BYTES = 8 << 20
_SKIP_BLOCK_BYTES = 1 << 20
_PAX_LENGTH = re.compile(rb"(\d{1,7}) ")
_PAX_SIZE = re.compile(r"[0-9]{1,19}")
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")


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
            problems.add("member_ignored", f"{name}: {short(member.name)}")
            continue
        if sample is not None and sample.key != key:
            num_samples += 1
            yield from _whole(sample, name, problems)
            sample = None
        sample = sample or TarSample(key)
        part = "annotation" if extension == "json" else "image"
        if getattr(sample, part) is not None:
            problems.add("sample_duplicate_member", f"{name}: {short(member.name)} comes twice; the first one counts")
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
    is_part = extension == "json" or extension in IMAGE_EXTENSIONS
    if not dot or not base or is_litter(name) or not is_part:
        return name, None
    return key, extension


def _whole(sample: TarSample, name: str, problems: ProblemLog) -> Iterator[TarSample]:
    if sample.image is None:
        problems.add("sample_without_image", f"{name}: {short(sample.key)} (the members of a sample must be adjacent)")
    elif sample.annotation is None:
        problems.add("sample_without_json", f"{name}: {short(sample.key)} (the members of a sample must be adjacent)")
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
        kind = header[156:157]
        size = None if problem else _size_of(header, extension if kind in _REGULAR else {})
        if size is None:
            problems.add("shard_damaged", f"{name}: at byte {offset - len(header)}: {problem or 'damaged size'}")
            return
        padded = size + (-size % BLOCK_BYTES)
        member_name = extension.get("path") or _name_of(header)
        if offset + size > size_bytes:
            found = f"should have {plural(size, 'byte')}, the file ends after {size_bytes - offset}"
            problems.add("shard_damaged", f"{name}: {short(member_name)} {found}")
            return
        if kind in _EXTENSIONS:
            if size > _LONGEST_EXTENSION_BYTES:
                problems.add("member_ignored", f"{name}: an extended header of {plural(size, 'byte')} at byte {offset}")
                _skip(stream, padded)
            else:
                extension |= _extension(kind, _read(stream, padded)[:size])
            offset += padded
            continue
        reason = _reason_to_ignore(kind, member_name, size, extension)
        extension = {}
        if kind == _SPARSE:  # its map of holes continues in blocks of its own, each of which says whether one follows
            continued = header[482]
            while continued and len(block := _read(stream, BLOCK_BYTES)) == BLOCK_BYTES:
                offset += BLOCK_BYTES
                continued = block[504]
        if reason is not None:
            problems.add("member_ignored", f"{name}: {short(member_name)} {reason}")
            _skip(stream, padded)
        else:
            is_wanted = member_name.lower().endswith(".json")
            data = _read(stream, padded)[:size] if is_wanted else _skip(stream, padded)
            yield TarMember(member_name, offset, size, data if is_wanted else None)
        offset += padded


def _reason_to_ignore(kind: bytes, member_name: str, size: int, extension: dict[str, str]) -> str | None:
    if kind == _SPARSE or "sparse" in extension:
        return "is sparse: its bytes are not one after another"
    if kind not in _REGULAR:
        return "is a link, folder or device"
    if len(member_name) > _LONGEST_NAME_BYTES:
        return f"has a name of {plural(len(member_name), 'byte')}"
    if size > _LONGEST_JSON_BYTES and member_name.lower().endswith(".json"):
        return f"has {plural(size, 'byte')}, too many for an annotation"
    return None


def _header_problem(header: bytes, is_first: bool) -> str | None:
    if is_first and header[:2] == b"\x1f\x8b":
        return "compressed with gzip; unpack it to a plain tar first (gunzip)"
    if len(header) < BLOCK_BYTES:
        return "the file ends inside a header"
    stored = header[148:156].strip(b" \0")
    computed = sum(header) - sum(header[148:156]) + 8 * 0x20
    if _OCTAL.fullmatch(stored) and int(stored or b"0", 8) == computed:
        return None
    return "this is no tar file" if is_first else "damaged header (wrong checksum); what follows is lost"


def _size_of(header: bytes, extension: dict[str, str]) -> int | None:
    """Return the bytes of data after a header; None where the field makes no sense."""
    if "size" in extension:
        return int(extension["size"]) if _PAX_SIZE.fullmatch(extension["size"]) else None
    if header[156:157] in _WITHOUT_DATA:
        return 0
    field = header[124:136]
    if field[0] == 0x80:  # base 256, for members of 8 GiB and more; 0xFF would begin a negative number
        return int.from_bytes(field[1:], "big")
    octal = _OCTAL.fullmatch(field)
    return int(octal[1] or b"0", 8) if octal else None


def _name_of(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _extension(kind: bytes, data: bytes) -> dict[str, str]:
    """Return what an extended header says of the next member: its path, its size, whether it is sparse."""
    if kind == b"L":
        return {"path": _text(data.split(b"\0", 1)[0])}
    found: dict[str, str] = {}
    position = 0
    while kind == b"x" and (length := _PAX_LENGTH.match(data, position)):  # records: a length, a blank, key=value
        end = position + int(length[1])
        if not length.end() < end <= len(data):
            break
        key, _, value = data[length.end() : end - 1].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value)
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        position = end
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


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
