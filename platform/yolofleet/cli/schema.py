"""``yolofleet schema``: what a spec may hold, for editors and for readers."""

from __future__ import annotations

from typing import Annotated

import typer

from yolofleet.cli.options import print_result


def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="job, search, promotion or model.", show_default=False)],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the keys as a Markdown table.")] = False,
) -> None:
    """Print the JSON Schema of a kind of spec: every key with its type, range, default and meaning."""
    from yolofleet.specs.schema import reference, spec_schema

    print_result(spec_schema(kind), reference(kind) if markdown else (), as_json=not markdown)
