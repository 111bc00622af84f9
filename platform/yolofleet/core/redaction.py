"""Passwords in URLs: found, and left out of whatever is shown or kept."""

from __future__ import annotations

import re

LOGIN = re.compile(r"(://[^/\s:@]*):[^/\s\"]+@")
"""User and password of a URL, up to the last @ before its path."""


def without_passwords(text: str) -> str:
    """Return a text in which the passwords of all URLs are replaced by stars."""
    return LOGIN.sub(r"\1:***@", text)


def holds_password(text: str) -> bool:
    """Return whether a text has a URL with a password in it."""
    return LOGIN.search(text) is not None
