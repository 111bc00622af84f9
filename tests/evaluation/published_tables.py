"""The tables of the paper, each row as a dictionary (tests/golden/published.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "published.json"


def published_tables() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every table by its name: table1 to table10, table9 by GPU."""
    tables = json.loads(GOLDEN.read_text())
    return {
        name: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]] for name, table in tables.items()
    }
