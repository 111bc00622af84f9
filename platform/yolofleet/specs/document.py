"""Reading a YAML document strictly: no duplicate keys, ``1e-3`` is a number, nothing is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from yolofleet.core.errors import UserError
from yolofleet.core.text import nearest, one_line


class DocumentError(UserError):
    """A YAML file or an override on the command line cannot be read."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key given twice and reads ``1e-3`` as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse one YAML document.

    Raises:
        DocumentError: The text is no YAML; names the source, the line and the reason.
    """
    loader = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data()
    except RecursionError as error:
        raise DocumentError(f"{source}: nested too deeply to be a spec") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(f"{source}: not readable as YAML: {_locate_error(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: str | Path) -> Any:
    """Read one YAML document from a file.

    Raises:
        DocumentError: The file is missing, not text, or no YAML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: no such file{_similar_files(path)}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"{path}: not UTF-8 text (byte {error.start}); a spec is a YAML file") from error
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_yaml(text, source=str(path))


def apply_overrides(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the document with ``key.path=value`` overrides set; values are YAML.

    Raises:
        DocumentError: An override has no ``=``, or its path runs through something that is not a mapping.
    """
    result: dict[str, Any] = _copy(document)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise DocumentError(f"override {override!r}: write it as key.path=value, e.g. data.image_size=320")
        value = parse_yaml(text, source=f"override {override!r}")
        group = result
        for depth, key in enumerate(keys[:-1]):
            inner = group.setdefault(key, {})
            if not isinstance(inner, dict):
                where = ".".join(keys[: depth + 1])
                raise DocumentError(
                    f"override {override!r}: '{where}' is {inner!r}, not a mapping with keys of its own"
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


def _locate_error(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return one_line(error)


def _similar_files(path: Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.glob("*.y*ml")] if folder.is_dir() else []
    match = nearest(path.name, names)
    return f"; did you mean {folder / match}?" if match else ""
