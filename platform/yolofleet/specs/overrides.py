"""Overrides of a spec on the command line: ``key.path=value``, the value in YAML."""

from __future__ import annotations

from typing import Any

from yolofleet.core.text import cut
from yolofleet.specs.yaml_document import MOST_LEVELS, DocumentError, parse_yaml

WRITTEN_AS = "write it as key.path=value, e.g. data.image_size=320"


def parse_override(override: str) -> tuple[str, Any]:
    """Return path and value of ``key.path=value``; the value is YAML.

    Raises:
        DocumentError: It has no ``=``, or its value is no YAML.
    """
    path, equals, text = override.partition("=")
    if not equals:
        raise DocumentError(f"override {cut(override)!r}: {WRITTEN_AS}")
    return path.strip(), parse_yaml(text, source=f"override {cut(override)!r}", has_lines=False)


def apply_overrides(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the document with ``key.path=value`` overrides set; values are YAML.

    Raises:
        DocumentError: An override has no ``=``, or its path runs through something that is not a mapping.
    """
    result: dict[str, Any] = _copy(document)
    for override in overrides:
        path, value = parse_override(override)
        keys = path.split(".")
        if not all(keys) or len(keys) > MOST_LEVELS:
            raise DocumentError(f"override {cut(override)!r}: {WRITTEN_AS}")
        group = result
        for depth, key in enumerate(keys[:-1]):
            inner = group.setdefault(key, {})
            if not isinstance(inner, dict):
                where = ".".join(keys[: depth + 1])
                raise DocumentError(
                    f"override {cut(override)!r}: '{where}' is {cut(repr(inner))}, not a mapping with keys of its own"
                )
            group = inner
        group[keys[-1]] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copy(inner) for inner in value]
    return value
