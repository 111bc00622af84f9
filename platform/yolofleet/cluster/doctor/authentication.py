"""Whether a cluster answers, accepts this user's token, and refuses everyone who has none.

A harmless request is sent twice, with the token and without. For addresses of Ray's own protocols it goes through
Ray's generated gRPC stubs and its TLS settings, which are private: `ray.init` would add the token by itself, may hang
on a dead address, and cannot be asked without one.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from yolofleet.cluster.doctor.finding import CLUSTER, Finding
from yolofleet.core.errors import UserError
from yolofleet.core.ray_runtime import own_token
from yolofleet.core.redaction import STARS, holds_secret, redact_url
from yolofleet.core.text import one_line

RAY_SUBJECT = "Ray"
SUBJECT = "authentication"
TIMEOUT_SECONDS = 10.0
SCHEMES = ("http", "https", "ray", "gcs")


@dataclass(frozen=True)
class Address:
    """Where a cluster answers."""

    scheme: str
    """http or https (dashboard and Jobs API), ray (Ray client) or gcs (HOST:PORT, for a node of the cluster)."""
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``http://HOST:8265``, ``ray://HOST:10001`` or ``HOST:6379``.

        Raises:
            UserError: It is none of these.
        """
        if holds_secret(text) or holds_secret(f"http://{text}"):
            shown = redact_url(text) if holds_secret(text) else STARS
            raise UserError(f"--address {shown}: holds a user or password; Ray takes its token from RAY_AUTH_TOKEN")
        try:
            parts = urlsplit(text if "://" in text else f"gcs://{text}")
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in SCHEMES or not parts.hostname or port is None:
            raise UserError(
                f"--address {text}: is not the address of a cluster; it looks like http://HOST:8265 (its dashboard), "
                "ray://HOST:10001, or HOST:6379 on one of its nodes"
            )
        return cls(parts.scheme, parts.hostname, port)

    @property
    def text(self) -> str:
        """The address as Ray takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.scheme == "gcs" else f"{self.scheme}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True)
class ProbeResult:
    """A cluster's response to a request."""

    outcome: Literal["accepted", "refused", "silent"]
    """Whether the request was accepted, refused, or not answered at all."""
    reason: str = ""
    """Why it was not accepted."""


def probe(address: Address, token: str | None) -> ProbeResult:
    """Send a cluster a harmless request, with a token or without one; returns within seconds."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    if address.scheme in ("http", "https"):
        return _probe_dashboard(address, headers)
    return _probe_service(address, headers)


def _probe_dashboard(address: Address, headers: dict[str, str]) -> ProbeResult:
    request = urllib.request.Request(f"{address.text}/api/jobs/", headers=headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECONDS):
            return ProbeResult("accepted")
    except urllib.error.HTTPError as error:
        return ProbeResult("refused" if error.code in (401, 403) else "silent", f"HTTP {error.code}")
    except OSError as error:
        return ProbeResult("silent", one_line(getattr(error, "reason", error), 200))
    except Exception as error:  # what answers there may speak anything but HTTP
        return ProbeResult("silent", f"{type(error).__name__}: {one_line(error, 200)}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keeps the token from being sent on to the target of a redirect, which no dashboard sends."""

    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect."""


def _probe_service(address: Address, headers: dict[str, str]) -> ProbeResult:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, ray_client_pb2, ray_client_pb2_grpc

    options = {"metadata": tuple(headers.items()), "timeout": TIMEOUT_SECONDS}
    with _open_channel(address.text.removeprefix("ray://")) as channel:
        try:
            if address.scheme == "ray":
                ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
                ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, **options)
            else:
                request = gcs_service_pb2.GetInternalConfigRequest()
                gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).GetInternalConfig(request, **options)
        except grpc.RpcError as error:
            refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            reason = f"{error.code().name}: {one_line(error.details(), 200)}"
            return ProbeResult("refused" if refused else "silent", reason)
    return ProbeResult("accepted")


def _open_channel(target: str) -> Any:
    """Return a gRPC channel that adds no token by itself; encrypted where Ray's own channels are."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(target)
    from ray._common.tls_utils import load_certs_from_env

    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, chain))


def check_access(address: Address, result: ProbeResult) -> Finding | None:
    """Return why the cluster cannot be examined by what it said to this user's token; None: it accepts it."""
    if result.outcome == "silent":
        cure = "is it running, and is --address that of its dashboard (http://HOST:8265) or of one of its nodes?"
        return Finding(CLUSTER, RAY_SUBJECT, "fail", f"nothing answers at {address.text} ({result.reason})", cure)
    if result.outcome == "refused":
        cure = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        seen = f"{address.text} refuses this token" if own_token() else f"{address.text} asks for a token; none is set"
        return Finding(CLUSTER, SUBJECT, "fail", f"{seen} ({result.reason})", cure)
    return None


def check_authentication(address: Address, without_token: ProbeResult) -> Finding:
    """Check what a cluster that accepts this user's token says to a request without one."""
    finding = partial(Finding, CLUSTER, SUBJECT)
    if without_token.outcome != "accepted":
        return finding("ok", "asks for a token, and accepts yours")
    cure = "start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
    if address.is_loopback:
        return finding("warn", "anyone on this machine can run code: no token is required", cure)
    return finding("fail", f"whoever reaches {address.text} can run code: no token is required", cure)
