"""The JSON Schema of every spec, for editors that complete and check, and the reference of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean
from yolofleet.specs.base import Spec
from yolofleet.specs.hyperparameters import HyperparameterOverrides, Hyperparameters, RecipeName, recipe
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelTable
from yolofleet.specs.promotion import PromotionPolicy
from yolofleet.specs.search import SearchSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS: Mapping[str, type[Spec]] = {
    "job": JobSpec,
    "search": SearchSpec,
    "promotion": PromotionPolicy,
    "model": ModelTable,
}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def spec_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of spec.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"{kind}: not a kind of spec{did_you_mean(kind, KINDS)}; there is {', '.join(KINDS)}")
    schema = _job_schema() if kind == "job" else KINDS[kind].model_json_schema()
    if kind == "search":
        job = _job_schema()
        schema["$defs"] |= job.pop("$defs")
        # What the base job lacks may be set by the search.
        schema["$defs"]["Job"] = {key: value for key, value in job.items() if key != "required"}
        base = schema["properties"]["job"]
        schema["properties"]["job"] = {
            "description": base["description"],
            "anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/Job"}],
        }
    return {"$schema": DIALECT, **schema, "title": f"yolofleet {kind}"}


def _job_schema() -> dict[str, Any]:
    """Return the schema of a job, with the hyper-parameters that it may change: it holds them as they were written."""
    schema = JobSpec.model_json_schema()
    overrides = HyperparameterOverrides.model_json_schema()
    schema["$defs"] |= overrides.pop("$defs", {})
    recipes = {name: recipe(name).document() for name in get_args(RecipeName)}
    for key, field in Hyperparameters.model_fields.items():
        values = [document.get(key) for document in recipes.values()]
        described = overrides["properties"][key] | {"description": field.description, "default": values[0]}
        if any(value != values[0] for value in values):
            each = ", ".join(f"{name} {value}" for name, value in zip(recipes, values, strict=True))
            described |= {"description": f"{field.description} By recipe: {each}.", "default": None}
        overrides["properties"][key] = described
    schema["$defs"]["Hyperparameters"] = overrides
    hyperparameters = schema["properties"]["hyperparameters"]
    schema["properties"]["hyperparameters"] = {
        "description": hyperparameters["description"],
        "$ref": "#/$defs/Hyperparameters",
    }
    return schema


def reference(kind: str) -> Iterator[str]:
    """Yield the keys of a kind of spec as the lines of a Markdown table: path, value, default, meaning."""
    schema = spec_schema(kind)
    yield "| Key | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    for path, field, is_required in _fields(
        schema, schema, "", ("Job",)
    ):  # the keys of a job have a table of their own
        default = "required" if is_required else _default(field)
        meaning = (
            " ".join(str(field.get("description") or _inner_description(field, schema)).split())
            .replace("``", "`")
            .replace("|", "\\|")
        )
        yield f"| `{path}` | {_value(field, schema)} | {default} | {meaning} |"


def _fields(
    part: Mapping[str, Any], schema: Mapping[str, Any], prefix: str, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield path, schema and whether it is required, for each key of a mapping and, after it, those below it."""
    for name, field in part.get("properties", {}).items():
        yield f"{prefix}{name}", field, name in part.get("required", ())
        inner = _inner(field)
        if inner is not None and inner not in above:
            yield from _fields(schema["$defs"][inner], schema, f"{prefix}{name}.", (*above, inner))


def _inner(field: Mapping[str, Any]) -> str | None:
    """Return the name of the mapping that a key holds, None where it holds a value."""
    for option in (field, *field.get("anyOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def _inner_description(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    inner = _inner(field)
    return "" if inner is None else str(schema["$defs"][inner].get("description", ""))


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if _inner(field) is not None or default is None or default in ({}, []):
        return "-"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _value(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return which values a key takes, as words."""
    if choices := field.get("anyOf") or field.get("oneOf"):
        options = [_value(option, schema) for option in choices if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "$ref" in field:
        inner = schema["$defs"][_inner(field)]
        return "mapping" if "properties" in inner else _value(inner, schema)
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    kind = str(field.get("type", "any"))
    if kind == "array":
        items = field.get("prefixItems") or [field["items"]] if field.get("items") or "prefixItems" in field else []
        return f"list of {' and '.join(dict.fromkeys(_value(item, schema) for item in items)) or 'values'}"
    words = {"string": "text", "boolean": "`true`, `false`", "object": "mapping"}.get(kind, kind)
    bounds = [f"{sign} {field[key]}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([words, " and ".join(bounds)]).strip()
