"""The token that Ray's clients prove themselves with, where they look for it."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
KEPT = Path(".ray") / "auth_token"
"""Below the home folder."""


def use_token() -> None:
    """Let Ray's clients in this process use the token that is there, unless the user's environment says otherwise.

    It takes effect only before ray is imported.
    """
    has_one = any(name in os.environ for name in VARIABLES) or (Path.home() / KEPT).is_file()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_one else "disabled")


def own_token() -> str | None:
    """Return the token that Ray's clients use here; None where there is none, or its file cannot be read."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / KEPT).read_text().strip() or None
    except OSError:
        return None
