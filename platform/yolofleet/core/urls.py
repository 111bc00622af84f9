"""URLs that a user or a server names, taken apart."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact_url


def split_url(url: str, error: type[UserError] = UserError) -> SplitResult:
    """Return the parts of a URL, or of a path; its port is a number.

    Args:
        url: Any text.
        error: What to raise.

    Raises:
        UserError: Its host or port cannot be read, as in ``http://[::1:5000``; the error has the given type.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise error(
            f"{redact_url(url)}: its host or port is wrong; a port is a number, and brackets belong around an IPv6 "
            "address alone: write http://HOST:PORT or s3://BUCKET/FOLDER"
        ) from None
    return parts
