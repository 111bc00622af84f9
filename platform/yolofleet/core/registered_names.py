"""Telling the name of a registered version from a path: ``NAME@ALIAS`` and ``NAME/VERSION``, or a folder or URL."""

from __future__ import annotations

import re
from pathlib import Path

MODELS_PREFIX = "models:/"
"""MLflow's scheme of a registered version."""


def registered_uri(model: str) -> str | None:
    """Return the ``models:/`` URI of a text that names a registered version; None for a folder, a file or a URL."""
    if model.startswith(MODELS_PREFIX):
        return model
    if "://" in model or not re.fullmatch(r"[^/:@]+(@[^/:@]+|/\d+)", model) or Path(model).exists():
        return None
    return f"{MODELS_PREFIX}{model}"
