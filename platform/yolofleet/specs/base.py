"""The base of every spec: frozen, strict, unknown keys refused, errors that a user can act on.

A YAML document is read strictly: no duplicate keys, ``1e-3`` is a number, nothing is executed. The types of values that
several specs share stand here too: counts, sizes in bytes, URLs without secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from yolofleet.core.byte_sizes import parse_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import STARS, holds_secret, names_secret, redact_url, redact_values
from yolofleet.core.text import did_you_mean, nearest, one_line


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


MOST_ERRORS_SHOWN = 8


class SpecError(UserError):
    """A spec is wrong; the message names file, key, value, what is allowed and the nearest spelling."""


class Spec(BaseModel):
    """A part of a document that a user writes: a job, a search space, a table of blocks."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, document: Any, *, source: str) -> Self:
        """Check a plain document (dicts, lists, numbers, text) and build the spec from it.

        Raises:
            SpecError: Something does not fit; every problem in one message, each on its own line. Or a text anywhere
                in the document is a URL with a secret, for a spec is kept with the run for all to read.
        """
        if not isinstance(document, dict):
            raise SpecError(f"{source}: a mapping of keys is needed here, not {_kind_of(document)}")
        refuse_secrets(document, source)
        try:
            return cls.model_validate_json(json.dumps(document, default=str))
        except pydantic.ValidationError as error:
            raise SpecError("\n".join(_explain(cls, error, source))) from None

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] | None = None) -> Self:
        """Read a YAML file, apply ``key.path=value`` overrides and build the spec.

        Raises:
            UserError: The file cannot be read, or a key or value does not fit.
        """
        document = read_yaml(path)
        if isinstance(document, dict) and overrides:
            document = apply_overrides(document, overrides)
        return cls.parse(document, source=str(path))

    def document(self) -> dict[str, Any]:
        """Return the spec as plain JSON values, without fields that are None."""
        return self.model_dump(mode="json", exclude_none=True)


def refuse_secrets(value: Any, source: str, key: str = "") -> None:
    """Raise `SpecError` for a text in a document that is a URL with a secret; names its key."""
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_secrets(str(name), source, f"a key of {key or 'the file'}")
            refuse_secrets(item, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            refuse_secrets(item, source, key)
    elif isinstance(value, str) and holds_secret(value):
        raise SpecError(
            f"{source}: {key}: {_shorten(redact_url(value))} holds a secret (a user part, a password, a token or a "
            "key), and a spec is kept with the run for all to read; leave it out of the URL and give it in the "
            "environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_SECRET_ACCESS_KEY), "
            "for pods in a Secret (kubernetes.secrets.storage, kubernetes.secrets.tracking)"
        )


def _explain(cls: type[BaseModel], error: pydantic.ValidationError, source: str) -> Iterator[str]:
    problems = error.errors(include_url=False)
    for problem in problems[:MOST_ERRORS_SHOWN]:
        location = [part for part in problem["loc"] if not _is_union_label(part)]
        key = ".".join(str(part) for part in location) or "(whole file)"
        yield f"{source}: {key}: {_explain_one(cls, problem, location)}"
    if len(problems) > MOST_ERRORS_SHOWN:
        yield f"{source}: and {len(problems) - MOST_ERRORS_SHOWN} more problems"


def _is_union_label(part: int | str) -> bool:
    """Return whether a part of a location is pydantic's label of a branch of a union, and no key of the user's."""
    return isinstance(part, str) and (
        part in ("int", "float", "str", "bool", "tuple", "list", "dict", "constrained-int", "constrained-float")
        or "[" in part
        or part[:1].isupper()
        or part.startswith("function-")
    )


def _explain_one(cls: type[BaseModel], problem: Any, location: list[int | str]) -> str:
    is_secret = bool(location) and names_secret(str(location[-1]))
    value = STARS if is_secret else _format_value(problem["input"])
    kind, message = problem["type"], str(problem["msg"])
    if kind == "extra_forbidden":
        allowed = _keys_at(cls, location[:-1])
        hint = did_you_mean(str(location[-1]), allowed) or ";"
        return f"unknown key (value {value}){hint} Allowed here: {', '.join(sorted(allowed))}"
    if kind == "missing":
        return "is missing; it has no default"
    if kind == "literal_error":
        expected = str(problem["ctx"]["expected"])
        choices = expected.replace("'", "").replace(" or ", ", ").split(", ")
        return f"{value} is not one of {expected}{did_you_mean(str(problem['input']), choices)}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}, not {value}"


def _keys_at(cls: type[BaseModel], location: list[int | str]) -> list[str]:
    """Return the keys that the spec class allows at a location."""
    current: type[BaseModel] | None = cls
    for part in location:
        if current is None or isinstance(part, int):
            continue
        field = current.model_fields.get(str(part))
        current = spec_within(field.annotation) if field is not None else None
    return list(current.model_fields) if current is not None else []


def spec_within(annotation: Any) -> type[BaseModel] | None:
    """Return the spec in an annotation, such as that of ``ClusterSpec | None``; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := spec_within(inner)) is not None:
            return found
    return None


def _format_value(value: Any) -> str:
    return _shorten(json.dumps(redact_values(value, by_name=True), default=str))


def _kind_of(document: Any) -> str:
    """Name the kind of a whole file's content; the text of a wrong file is not repeated, for it may be a key."""
    return "text" if isinstance(document, str) else "a list" if isinstance(document, list) else _format_value(document)


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _read_bytes(value: Any) -> Any:
    """Read sizes such as ``200GB``; plain numbers are bytes."""
    return parse_bytes(value) if isinstance(value, str) else value


def absolute_url(url: str) -> str:
    """Return a path as an absolute one, and a URL as it is."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


Count = Annotated[int, Field(ge=1)]
ByteSize = BeforeValidator(_read_bytes)
"""Reads ``200GB``."""
Bytes = Annotated[int, ByteSize, Field(ge=1)]


Url = Annotated[str, Field(min_length=1)]
