"""Packages that are only there where detectors are exported, or run by another runtime than torch."""

from __future__ import annotations

from importlib.util import find_spec

from yolofleet.export.settings import ExportError

CURE = "install it with: pip install 'yolofleet[export]'"


def require_packages(*names: str) -> None:
    """Refuse to go on without packages that are only installed for exporting.

    Raises:
        ExportError: one of them is missing.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ExportError(f"the package {missing[0]} is not installed; {CURE}")
