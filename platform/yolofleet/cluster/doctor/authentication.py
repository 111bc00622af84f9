"""Whether a cluster answers, lets us in, and keeps those out who have no token."""

from __future__ import annotations

import ipaddress
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from yolofleet.cluster.doctor.finding import CLUSTER, Line
from yolofleet.core.errors import UserError
from yolofleet.core.ray_runtime import own_token

REACH_SUBJECT = "Ray"
SUBJECT = "authentication"
KNOCK_SECONDS = 10.0
SCHEMES = ("http", "https", "ray", "gcs")
FIRST_LINE = 200

Kind = Literal["in", "refused", "silent"]


@dataclass(frozen=True)
class Address:
    """Where a cluster is asked.

    Attributes:
        scheme: http or https (dashboard and Jobs API), ray (Ray client) or gcs (HOST:PORT, as a node of it sees it).
        host: Its host.
        port: Its port.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``http://HOST:8265``, ``ray://HOST:10001`` or ``HOST:6379``.

        Raises:
            UserError: It is none of these.
        """
        try:
            parts = urlsplit(text if "://" in text else f"gcs://{text}")
            port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in SCHEMES or not parts.hostname or port is None:
            raise UserError(
                f"--address {text}: is no address of a cluster; it looks like http://HOST:8265 (its dashboard), "
                "ray://HOST:10001, or HOST:6379 on one of its nodes"
            )
        if parts.password is not None or parts.username is not None:
            raise UserError("--address: holds a user or password; Ray takes its token from RAY_AUTH_TOKEN")
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
class Answer:
    """What a cluster says to someone who knocks.

    Attributes:
        kind: Whether he is let in.
        reason: Why not.
    """

    kind: Kind
    reason: str = ""


def knock(address: Address, token: str | None) -> Answer:
    """Ask a cluster for something harmless, with a token or without one; returns within seconds."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    if address.scheme in ("http", "https"):
        return _knock_at_dashboard(address, headers)
    return _knock_at_service(address, headers)


def _knock_at_dashboard(address: Address, headers: dict[str, str]) -> Answer:
    request = urllib.request.Request(f"{address.text}/api/jobs/", headers=headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=KNOCK_SECONDS):
            return Answer("in")
    except urllib.error.HTTPError as error:
        return Answer("refused" if error.code in (401, 403) else "silent", f"HTTP {error.code}")
    except OSError as error:
        return Answer("silent", _first_line(getattr(error, "reason", error)))
    except Exception as error:  # what answers there may speak anything but HTTP
        return Answer("silent", f"{type(error).__name__}: {_first_line(error)}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keeps the token from being sent on to wherever an answer points."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none: a redirect is no dashboard's answer."""


def _knock_at_service(address: Address, headers: dict[str, str]) -> Answer:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, ray_client_pb2, ray_client_pb2_grpc

    target = address.text.removeprefix("ray://")
    metadata = tuple(headers.items())
    with _channel(target) as channel:
        try:
            if address.scheme == "ray":
                ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
                ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(
                    ping, metadata=metadata, timeout=KNOCK_SECONDS
                )
            else:
                harmless = gcs_service_pb2.GetInternalConfigRequest()
                gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).GetInternalConfig(
                    harmless, metadata=metadata, timeout=KNOCK_SECONDS
                )
        except grpc.RpcError as error:
            refused = error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            return Answer("refused" if refused else "silent", f"{error.code().name}: {_first_line(error.details())}")
    return Answer("in")


def _channel(target: str) -> Any:
    """Return a connection that adds no token by itself; encrypted where Ray's own are."""
    import grpc

    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(target)
    from ray._common.tls_utils import load_certs_from_env

    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, chain))


def judge_reach(address: Address, ours: Answer) -> Line | None:
    """Return why the cluster cannot be looked at; None: it lets us in."""
    if ours.kind == "silent":
        cure = "is it running, and is --address that of its dashboard (http://HOST:8265) or of one of its nodes?"
        return Line(CLUSTER, REACH_SUBJECT, "fail", f"nothing answers at {address.text} ({ours.reason})", cure)
    if ours.kind == "refused":
        cure = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        seen = f"{address.text} refuses this token" if own_token() else f"{address.text} asks for a token, none is set"
        return Line(CLUSTER, SUBJECT, "fail", f"{seen} ({ours.reason})", cure)
    return None


def judge_stranger(address: Address, stranger: Answer) -> Line:
    """Judge by what a cluster that lets us in says to someone without a token."""
    if stranger.kind != "in":
        return Line(CLUSTER, SUBJECT, "ok", "asks for a token, and takes ours")
    cure = "start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
    if address.is_loopback:
        seen = "anyone on this machine may run anything: no token is asked for"
        return Line(CLUSTER, SUBJECT, "warn", seen, cure)
    return Line(
        CLUSTER, SUBJECT, "fail", f"whoever reaches {address.text} may run anything: no token is asked for", cure
    )


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:FIRST_LINE]
