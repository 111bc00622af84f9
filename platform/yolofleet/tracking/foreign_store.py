"""Which stores a command must not ask, although a file from somebody else names them.

MLflow's client shows its credentials to every host that it talks to. The user's own stores are those that he names
himself, with ``--tracking-uri`` or ``MLFLOW_TRACKING_URI``; one that only a run or a registry names may be anybody's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from yolofleet.core.local_files import local_path
from yolofleet.core.redaction import redact_url
from yolofleet.core.text import split_url
from yolofleet.tracking.mlflow_store import TrackingError, sqlite_path

CREDENTIALS = (
    "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
)  # fmt: skip
"""Variables that make MLflow's client log in."""
CREDENTIALS_FILE = "~/.mlflow/credentials"
PORTS = {"http": 80, "https": 443}


def named_by_user(given: str | None = None) -> str | None:
    """Return the store that the user names: the given one, else that of ``MLFLOW_TRACKING_URI``; None for none."""
    return given or os.environ.get("MLFLOW_TRACKING_URI")


def refuse_foreign(uri: str, own: Sequence[str | None], named_in: str) -> None:
    """Refuse to ask a store that may be somebody else's and would get the user's credentials.

    Args:
        uri: The store, or the URL of a version's files.
        own: The user's stores.
        named_in: What names the store, for the message.

    Raises:
        TrackingError: It is a server of another origin (scheme, host, port), and there are credentials; or a database
            on a server, whose driver logs in by itself.
    """
    if sqlite_path(uri) is not None or uri in own:
        return
    origin = _origin(uri)
    if origin is None:
        reason = "what reads it, such as the driver of a database, may log in there"
    elif origin in [_origin(other) for other in own if other] or (credentials := _credentials_for(uri)) is None:
        return
    else:
        reason = f"it would get what {credentials} holds"
    shown = redact_url(uri)
    raise TrackingError(
        f"{shown} was not asked: only {named_in} names it, and {reason}; if it is yours, name it in MLFLOW_TRACKING_URI"
    )


def _origin(uri: str) -> tuple[str, str | None, int] | None:
    """Return scheme, host and port of a web server; None for anything else."""
    parts = split_url(uri, TrackingError)
    return (parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme]) if parts.scheme in PORTS else None


def _credentials_for(uri: str) -> str | None:
    """Return the variable or file with credentials that MLflow's client would send to a server; None for none."""
    from requests.utils import get_netrc_auth

    if variable := next(filter(os.environ.get, CREDENTIALS), None):
        return variable
    if local_path(CREDENTIALS_FILE).exists():
        return CREDENTIALS_FILE
    return "netrc" if get_netrc_auth(uri) is not None else None
