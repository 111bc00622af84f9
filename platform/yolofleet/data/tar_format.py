"""The little of the tar format that shards need: members written the same way every time.

Plain ustar headers without times, owners or extensions, so that equal input gives equal bytes.
"""

from __future__ import annotations

BLOCK_BYTES = 512
END_OF_ARCHIVE = b"\0" * (2 * BLOCK_BYTES)
LONGEST_NAME_BYTES = 100


def tar_header(name: str, size_bytes: int) -> bytes:
    """Return the 512-byte ustar header of a regular file.

    Raises:
        ValueError: The name is not plain ASCII of at most 100 bytes, or the size does not fit.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= LONGEST_NAME_BYTES or not 0 <= size_bytes < 8**11:
        raise ValueError(f"no plain tar header for name {name!r} of {size_bytes} bytes")
    header = bytearray(BLOCK_BYTES)
    header[0 : len(encoded)] = encoded
    header[100:108] = b"0000644\0"  # mode
    header[108:116] = header[116:124] = b"0000000\0"  # owner and group
    header[124:136] = b"%011o\0" % size_bytes
    header[136:148] = b"00000000000\0"  # time: none, so that two builds are equal
    header[148:156] = b"        "  # the checksum counts as spaces while it is computed
    header[156:157] = b"0"  # a regular file
    header[257:265] = b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def padding(size_bytes: int) -> bytes:
    """Return the zeros that fill a member up to whole blocks."""
    return b"\0" * (-size_bytes % BLOCK_BYTES)
