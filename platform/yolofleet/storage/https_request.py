"""Requests to ``https://`` addresses that a stranger may have named: where they may lead, and why they failed.

A job may come from a stranger, so its URL can do little. It is asked for with GET over TLS, with no credentials, and a
redirection leads to ``https`` only. Addresses that are not public (loopback, private, link-local) are refused unless
``YOLOFLEET_URL_HOSTS`` names the host. A name whose address changes between this check and the connection gains
nothing: the certificate of the host behind it does not carry that name, so no request is sent.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import SplitResult, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    getproxies,
    proxy_bypass,
)

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import holds_secret, redact_url

TIMEOUT_SECONDS = 30.0
HOSTS_VARIABLE = "YOLOFLEET_URL_HOSTS"
"""Hosts whose address need not be public, separated by commas."""
BY_HAND = "otherwise download it yourself, and give its path"


class FetchError(UserError):
    """A file that cannot be fetched, or is another one than its digest says."""


def check_url(url: str) -> None:
    """Raise `FetchError` for a URL that is not fetched: other schemes, user parts and secrets."""
    shown, parts = redact_url(url), _split(url)
    if holds_secret(url) or parts.username is not None:
        raise FetchError(f"{shown}: a URL takes no user, token or password; {BY_HAND}")
    if parts.scheme != "https":
        raise FetchError(f"{shown}: files are only fetched by https, which proves who sent them; {BY_HAND}")
    if not parts.hostname or not url.isprintable() or not url.isascii() or " " in url:
        raise FetchError(f"{shown!r:.300}: a URL is https://HOST/PATH, without blanks (%20) and in ASCII")


def _split(url: str) -> SplitResult:
    """Return the parts of a URL; its host is a plain name or address, for urllib would decode a percent-encoded one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")  # as a look-up does, which fails where a part between dots is empty or too long
    except ValueError:
        raise FetchError(f"{redact_url(url)!r:.300} is not a URL") from None
    if "%" in parts.netloc:
        raise FetchError(f"{redact_url(url)!r:.300}: the host of a URL is written plainly, without %")
    return parts


class _Redirections(HTTPRedirectHandler):
    """Follows redirections to https and public hosts."""

    max_redirections = 5

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Return the request to send next."""
        target = _split(newurl)
        if target.scheme != "https":
            raise FetchError(f"{req.full_url}: the server leads to {target.scheme}://, and only https is followed")
        check_host(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def make_opener() -> OpenerDirector:
    """Return an opener that knows https, proxies and redirections, and no other scheme."""
    opener = OpenerDirector()
    handlers = (
        ProxyHandler(),
        HTTPSHandler(context=ssl.create_default_context()),
        _Redirections(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def check_host(url: str) -> None:
    """Raise `FetchError` for a host whose address is not public; behind a proxy, the proxy finds the address."""
    parts = _split(url)
    host, port = (parts.hostname or "").rstrip("."), parts.port or 443
    trusted = {name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",")}
    if host in trusted or f"{host}:{port}" in trusted:
        return
    is_behind_proxy = "https" in getproxies() and not proxy_bypass(host)
    try:
        flags = socket.AI_NUMERICHOST if is_behind_proxy else 0
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)}
    except OSError:  # the proxy, or the connection, says why
        found = {"127.0.0.1"} if host == "localhost" or host.endswith(".localhost") else set()
    if private := sorted(address for address in found if not _is_public(address)):
        raise FetchError(
            f"https://{host}: its address {private[0]} is of this machine or of a private network; "
            f"if you trust this host, name it in {HOSTS_VARIABLE}={host}"
        )


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    return ((getattr(address, "ipv4_mapped", None)) or address).is_global


def explain_failure(reason: object) -> str:
    """Say why a connection failed, and what to look at."""
    proxy = "the proxy of HTTPS_PROXY" if "https" in getproxies() else "whether it needs a proxy (HTTPS_PROXY)"
    if isinstance(reason, socket.gaierror):
        return f"the host's name is not found; check that this machine has a network, and {proxy}"
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:.0f} s; check what a firewall keeps back, and {proxy}"
    if isinstance(reason, OSError) and str(reason).startswith("Tunnel connection failed"):
        return f"the proxy of HTTPS_PROXY refuses it ({str(reason).removeprefix('Tunnel connection failed: ')})"
    if isinstance(reason, ConnectionResetError | HTTPException):
        return "the connection broke off"
    named = reason.strerror if isinstance(reason, OSError) else None
    return f"the connection failed ({named or type(reason).__name__}); check the address, and {proxy}"
