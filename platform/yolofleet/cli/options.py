"""Arguments and options that several commands have, and the one way in which every command prints.

A command prints its result with `print_result`: lines for people, or with ``--json`` one JSON document and nothing
else. Whatever else it has to say (progress, notes, warnings) goes to stderr with `note` of `core.terminal`. Neither
prints the secret of a URL. A command returns its exit code; None means that it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.core.byte_sizes import parse_bytes
from yolofleet.core.errors import UserError, is_installed
from yolofleet.core.redaction import redact_values
from yolofleet.core.terminal import show
from yolofleet.core.text import and_more, plural

if TYPE_CHECKING:
    from yolofleet.registry.release import Release

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow server or database. Default: MLFLOW_TRACKING_URI, otherwise the database beside the runs.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The cluster's dashboard, http://HOST:8265; by default RAY_API_SERVER_ADDRESS, otherwise this machine.",
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
AnyVersion = Annotated[
    bool,
    typer.Option("--any-version", help="Run it even if the cluster has other package versions than this machine."),
]
FollowLinks = Annotated[
    bool,
    typer.Option("--follow-links", help="Follow links that lead out of the folder; by default they are left out."),
]


def print_result(document: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print a command's result: the document as JSON, or the lines; the other of the two is not touched."""
    if as_json:
        show(json.dumps(redact_values(document), indent=1, ensure_ascii=False))
        return
    for line in lines:
        show(line, keeps_colours=True, wraps=True)


def refuse_given(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Refuse options that would change nothing.

    Args:
        context: Of the command that runs.
        names: Of its parameters.
        reason: Why they would change nothing.

    Raises:
        UserError: The user gave one of them.
    """
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = [f"--{name.replace('_', '-')}" for name in given]
        raise UserError(f"{reason}: leave out {and_more(options, len(options))}")


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


def result_lines(record: Release, headline: str, more: str | None = None) -> Iterator[str]:
    """Yield a line for each thing that a run made, and how to train it longer."""
    from yolofleet.training.loop.sample_log import format_skips

    ap50, ap = (
        "none (no objects)" if record.figures[key] is None else f"{record.figures[key]:.4f}" for key in ("AP50", "AP")
    )
    images = plural(record.num_images, "image")
    lines = {
        "result": f"AP50 {ap50}, AP {ap} on {images}, by the deployed model of step {record.step}",
        "ended early": record.ended_early,
        "skipped": "; ".join(f"{part}: {format_skips(skips)}" for part, skips in record.skipped.items()) or "none",
        "run directory": record.run,
        "anchors": record.anchors,
        "model": record.model or f"not registered: yolofleet registry register {record.run} --name NAME",
        "report": record.report,
        "images": record.images,
        "MLflow": _how_to_open(record.mlflow),
        "train longer": more,
    }
    yield headline
    yield from (f"  {name:<14} {text}" for name, text in lines.items() if text is not None)


def _how_to_open(tracking_uri: str | None) -> str:
    if tracking_uri is None:
        missing = "not installed: pip install 'yolofleet[server]'"
        return f"not used ({'no tracking.uri, or no answer' if is_installed('mlflow') else missing})"
    if tracking_uri.startswith("http"):
        return tracking_uri
    return f"mlflow ui --backend-store-uri {tracking_uri}   (then open http://127.0.0.1:5000)"
