"""The image's health check: what runs in the container answers, whether it is MLflow or a node of Ray.

An argument or ``HEALTH_URL`` names a page that must answer; without either, Ray's own node must be alive.
"""

from __future__ import annotations

import os
import sys
import urllib.request

RAYLET_URL = "http://127.0.0.1:52365/api/local_raylet_healthz"


def healthy(url: str, timeout_seconds: float = 8.0) -> bool:
    """Return whether a page answers with success."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HEALTH_URL", RAYLET_URL)
    sys.exit(0 if healthy(named) else 1)
