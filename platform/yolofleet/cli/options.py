"""Arguments and options that several commands have, and the one way in which every command prints.

A command prints its result with `print_result`: lines for people, or with ``--json`` one JSON document and nothing
else. Whatever else it has to say (progress, notes, warnings) goes to stderr with `note` of `core.terminal`. Neither
prints the secret of a URL. A command returns its exit code; None means that it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from yolofleet.core.byte_sizes import parse_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact_values
from yolofleet.core.terminal import show

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow server or database. Default: MLFLOW_TRACKING_URI, else the database beside the runs.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The cluster's dashboard, http://HOST:8265; by default RAY_API_SERVER_ADDRESS, else this machine.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and the workers print.")]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job spec (YAML), a path or an s3:// URL.", show_default=False)
]
SpecArgument = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A job spec or a search space (YAML), path or s3:// URL.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Fields to change, e.g. epochs=5; 'yolofleet schema job --markdown' lists all."
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run directory, a detector package, NAME@ALIAS or NAME/VERSION.", show_default=False
    ),
]
FollowLinks = Annotated[
    bool,
    typer.Option("--follow-links", help="Read what links that lead out of a folder lead to; else they are refused."),
]


def print_result(document: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a command's result: the document as JSON, or the lines; the other of the two is not touched."""
    if as_json:
        show(json.dumps(redact_values(document), indent=1, ensure_ascii=False))
        return
    for line in lines:
        show(line, keeps_colours=True)


def parse_byte_option(text: str, option: str) -> int:
    """Return the number of bytes that an option gives, at least one.

    Raises:
        UserError: It is not a size, or less than one byte.
    """
    try:
        value = parse_bytes(text)
    except ValueError as error:
        raise UserError(f"{option} {error}") from None
    if value < 1:
        raise UserError(f"{option} {text!r}: at least one byte is needed")
    return value
