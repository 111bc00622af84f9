"""Pictures by URL, from hosts that the operator of a server has named, and from no others.

A server that fetches what a stranger names can be made to look at the network behind it. So there is a list of hosts,
empty by default; a redirection is not followed, and size and time are bounded.
"""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from yolofleet.evaluation.pictures import PictureError

HOSTS_VARIABLE = "YOLOFLEET_URL_HOSTS"
"""Hosts, separated by commas, each with its port if that is not the scheme's own."""
SCHEMES = ("http://", "https://")
MOST_BYTES = 64 << 20
TIMEOUT_SECONDS = 10.0
BLOCK_BYTES = 1 << 16


def named_hosts(text: str) -> frozenset[str]:
    """Return the hosts of a list separated by commas."""
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


def fetch_picture(url: str, hosts: frozenset[str]) -> bytes:
    """Fetch a picture.

    Args:
        url: http or https.
        hosts: the hosts that may be asked.

    Raises:
        PictureError: The host is none of them, it does not answer in time, or with something too large.
    """
    shown = url[:200]
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError as error:
        raise PictureError(f"{shown!r} is no URL: {error}") from error
    if not hosts:
        raise PictureError(f"pictures by URL are switched off; {HOSTS_VARIABLE} names the hosts that may be asked")
    if parts.username is not None or host not in hosts:
        raise PictureError(f"{shown!r}: pictures are fetched from {', '.join(sorted(hosts))} only")
    give_up = time.monotonic() + TIMEOUT_SECONDS
    opener = build_opener(_NoRedirection)
    data = bytearray()
    try:
        with opener.open(Request(url, headers={"User-Agent": "yolofleet"}), timeout=TIMEOUT_SECONDS) as answer:
            while block := answer.read1(BLOCK_BYTES):
                data += block
                if len(data) > MOST_BYTES:
                    raise PictureError(f"{shown!r} is larger than {MOST_BYTES:,} bytes")
                if time.monotonic() > give_up:
                    raise PictureError(f"{shown!r} took longer than {TIMEOUT_SECONDS:.0f} s")
    except HTTPError as error:
        raise PictureError(f"{shown!r}: the host answers {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise PictureError(f"{shown!r} cannot be fetched: {type(error).__name__}") from error
    return bytes(data)


class _NoRedirection(HTTPRedirectHandler):
    """Take a redirection for the error it is here: it may lead to a host that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""
        return None
