"""``yolofleet schema``: what a spec may hold, for editors and for readers, and the specs that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolofleet.cli.options import print_result
from yolofleet.core.errors import UserError

FOLDERS = {"job": "jobs", "search": "search_spaces"}


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="job, search, promotion or model.", show_default=False)],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the keys as a Markdown table.")] = False,
    example: Annotated[
        str | None,
        typer.Option("--example", metavar="NAME", help="Print a ready job or search space, e.g. coco-yolov7."),
    ] = None,
) -> None:
    """Print the JSON Schema of a kind of spec: every key with its type, range, default and meaning."""
    if example is not None:
        print_result(None, [ready_spec(kind, example)], as_json=False)
        return
    from yolofleet.specs.schema import reference, spec_schema

    print_result(spec_schema(kind), reference(kind) if markdown else (), as_json=not markdown)


def ready_spec(kind: str, name: str) -> str:
    """Return the text of a job or a search space that comes with the package.

    Raises:
        UserError: There is none of this kind, or none of this name; names all that there are.
    """
    from yolofleet.core.text import did_you_mean

    if kind not in FOLDERS:
        raise UserError(f"--example: there is none of {kind}, only of: {', '.join(FOLDERS)}")
    folder = Path(__file__).parents[1] / "specs" / FOLDERS[kind]
    texts = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in texts:
        raise UserError(f"no ready {kind} '{name}'{did_you_mean(name, texts)} (there are: {', '.join(texts)})")
    return texts[name].read_text().rstrip("\n")
