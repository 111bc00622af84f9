"""The base of every spec: frozen, strict, unknown keys refused, errors that a user can act on.

Overrides on the command line (``key.path=value``) and the types of values that several specs share stand here too:
counts, sizes in bytes, URLs without secrets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Self, get_args, get_origin

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from yolofleet.core.byte_sizes import parse_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.local_files import local_path
from yolofleet.core.redaction import STARS, holds_secret, names_secret, redact_url, redact_values
from yolofleet.core.text import cut, did_you_mean, one_line, plural, short
from yolofleet.specs.yaml_document import MOST_LEVELS, AnyFile, DocumentError, parse_yaml, read_yaml

MOST_ERRORS_SHOWN = 8
MOST_CHARACTERS = 1000
"""Longest message of one problem."""


class SpecError(UserError):
    """A spec is wrong; the message names file, key, value, what is allowed and the nearest spelling."""


class Spec(BaseModel):
    """A part of a document that a user writes: a job, a search space, a table of blocks."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, document: Any, *, source: str = "document") -> Self:
        """Check a plain document (dicts, lists, numbers, text) and build the spec from it.

        Args:
            document: What a file would hold.
            source: Where it comes from, for messages.

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
    def load(cls, path: AnyFile, overrides: list[str] | None = None) -> Self:
        """Read a YAML file, apply ``key.path=value`` overrides and build the spec.

        Raises:
            UserError: The file cannot be read, or a key or value does not fit.
        """
        document = read_yaml(path)
        if isinstance(document, dict) and overrides:
            document = apply_overrides(document, overrides)
        return cls.parse(document, source=str(path))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what was set; defaults are left out of ``repr``."""
        return ((name, value) for name, value in super().__repr_args__() if name in self.model_fields_set)

    def document(self) -> dict[str, Any]:
        """Return the spec as plain JSON values, without fields that are None."""
        return self.model_dump(mode="json", exclude_none=True)


def refuse_secrets(value: Any, source: str, key: str = "") -> None:
    """Raise `SpecError` for a text in a document that is a URL with a secret; names its key."""
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_secrets(str(name), source, f"a key of {key or 'the file'}")
            within = cut(str(name), 80)  # of a huge key, a path for each of its many keys would be too much
            refuse_secrets(item, source, f"{key}.{within}" if key else within)
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
        *above, last = problem["loc"] or ("",)
        is_key = (
            problem["type"] == "extra_forbidden"
        )  # then the last part is what the user wrote, whatever it looks like
        location = [part for part in above if not _is_union_label(part)]
        location += [last] if is_key or not _is_union_label(last) else []
        key = one_line(".".join(str(part) for part in location)) or "(whole file)"
        yield f"{source}: {key}: {_explain_one(cls, problem, location)}"
    if len(problems) > MOST_ERRORS_SHOWN:
        yield f"{source}: and {plural(len(problems) - MOST_ERRORS_SHOWN, 'more problem')}"


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
        return one_line(message.removeprefix("Value error, "), MOST_CHARACTERS)
    return f"{message[:1].lower()}{message[1:]}, not {value}{_cure(kind, problem['input'])}"


def _cure(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "; quotes make it text, on a command line KEY='\"TEXT\"'"
    if kind == "bool_type" and str(value).lower() in ("yes", "no", "on", "off"):
        return "; write true or false"
    return ""


def _keys_at(cls: type[BaseModel], location: list[int | str]) -> list[str]:
    """Return the keys that the spec class allows at a location."""
    current: type[BaseModel] | None = cls
    is_name = False  # a key that the user chose, in a field that maps names to specs
    for part in location:
        if current is None or isinstance(part, int) or is_name:
            is_name = False
            continue
        field = current.model_fields.get(str(part))
        current = spec_within(field.annotation) if field is not None else None
        is_name = field is not None and get_origin(field.annotation) is dict
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
    return url if "://" in url else str(local_path(url))


Count = Annotated[int, Field(ge=1)]
ByteSize = BeforeValidator(
    _read_bytes, json_schema_input_type=Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[0-9]")]
)
"""Reads ``200GB``."""
Bytes = Annotated[int, ByteSize, Field(ge=1)]


def _check_url(url: str) -> str:
    if url.startswith("~"):
        try:
            local_path(url)
        except UserError as error:
            raise ValueError(str(error)) from None
    return url


Url = Annotated[str, Field(min_length=1), AfterValidator(_check_url)]


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
                    f"override {cut(override)!r}: '{where}' is {short(inner, 40)}, not a mapping with keys of its own"
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
