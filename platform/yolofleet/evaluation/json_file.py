"""JSON as tools write it: with a byte order mark, also in UTF-16, in gzip or zip, as one document or several values."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.local_files import read_regular
from yolofleet.core.text import decode_text
from yolofleet.data.zip_folder import BOUNDED_METHODS

MOST_BYTES = 2**31
MOST_RATIO, MOST_SMALL_BYTES = 100, 2**21
"""What a packed file may unpack to: a hundred times its size, and two megabytes; packed records are about a tenth."""
GZIP_MAGIC, ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"


def is_json_name(name: str) -> bool:
    """Return whether a path names a file of JSON, by its ending."""
    return re.search(r"\.(json|jsonl|ndjson)(\.gz|\.zip)?$", name, re.IGNORECASE) is not None


def read_json(path: Path) -> Any:
    """Read a file.

    Returns:
        Its document. Several values, such as JSON lines or the files of several workers joined together, are returned
        as one list; the items of lists among them are its items.

    Raises:
        UserError: It cannot be read or unpacked, is neither UTF-8 nor UTF-16 with its byte order mark, or is not JSON.
    """
    return parse_json(read_packed(path), path)


def parse_json(data: bytes, path: Path) -> Any:
    """Return the document of a file's content as `read_json` does."""
    with suppress(ValueError):  # several values, another encoding, or no JSON: read below, or refused with the reason
        return from_json(data.removeprefix(BOM_UTF8))
    text = _decode(data, path)
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
            return _read_values(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_packed(path: Path) -> bytes:
    """Return the content of a file, of a gzip file, or of the one JSON file in a zip file."""
    try:
        data = read_regular(path, MOST_BYTES)
        if data.startswith(GZIP_MAGIC):
            return _read_bounded(gzip.GzipFile(fileobj=io.BytesIO(data)), path, len(data))
        if data.startswith(ZIP_MAGIC):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = [name for name in archive.namelist() if is_json_name(name) and "__MACOSX" not in name]
                if len(names) != 1:
                    raise UserError(f"{path} holds {len(names)} JSON files; unpack it and name the one that is meant")
                if (method := archive.getinfo(names[0]).compress_type) not in BOUNDED_METHODS:
                    raise UserError(f"{path} is packed by zip's method {method}, and only deflate is read; unpack it")
                with archive.open(names[0]) as member:
                    return _read_bounded(member, path, len(data))
        return data
    except (zlib.error, EOFError, ValueError, zipfile.BadZipFile, gzip.BadGzipFile, RuntimeError) as error:
        raise UserError(f"cannot unpack {path}: {error}; is the download complete?") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _read_bounded(file: IO[bytes] | gzip.GzipFile, path: Path, packed_bytes: int) -> bytes:
    most_bytes = min(MOST_BYTES, MOST_RATIO * packed_bytes + MOST_SMALL_BYTES)
    data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise UserError(f"{path} unpacks to more than the {format_bytes(most_bytes)} that are read; unpack it yourself")
    return data


def _decode(data: bytes, path: Path) -> str:
    if not data.strip():
        raise UserError(f"{path} is empty")
    if b"\0" in data[:4] and not data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise UserError(
            f"{path} is not UTF-8 text but UTF-16 without a byte order mark; "
            "convert it: iconv -f UTF-16LE -t UTF-8 OLD > NEW (or UTF-16BE)"
        )
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _read_values(text: str) -> list[Any]:
    """Return all values of a text that holds several."""
    decoder, values, position = json.JSONDecoder(), [], 0
    space = re.compile(r"\s*")
    while (position := space.match(text, position).end()) < len(text):  # type: ignore[union-attr]
        value, position = decoder.raw_decode(text, position)
        values += value if isinstance(value, list) else [value]
    return values
