"""Every text of the package's source, as it is printed: parts that are put in are left as a gap."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import yolofleet


@cache
def texts_of_the_package() -> tuple[str, ...]:
    """Return the texts, adjacent literals joined."""
    found = []
    for path in Path(yolofleet.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)
