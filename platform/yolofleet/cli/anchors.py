"""``yolofleet data anchors``: do a model's anchors suit the boxes of a dataset, and which would suit them better."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yolofleet.data.anchors import AnchorFit, Anchors


def anchors(
    data: Annotated[str, typer.Argument(help="The dataset of shards: a path or s3://.", show_default=False)],
    model: Annotated[str, typer.Option(help="Whose anchors: a model's name, or the path of a block table.")],
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Side of the network's input in pixels; the model's unless given.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit anchors to the boxes, and compare them.")] = False,
    anchor_t: Annotated[
        float, typer.Option(min=1.01, help="Largest ratio between the sides of a box and an anchor that can learn it.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides the course of the fitting.")] = 0,
    most_images: Annotated[int, typer.Option(min=1, help="Look at no more images than this, spread evenly.")] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
) -> None:
    """Measure which share of a dataset's boxes a model's anchors can learn at all, and fit better ones."""
    from yolofleet.core.errors import UserError
    from yolofleet.data.anchors import GOOD_RECALL, anchor_fit, fit_anchors
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.data.survey import survey_boxes
    from yolofleet.models.wiring import wire
    from yolofleet.models.zoo import resolve
    from yolofleet.training.setup.preparation import table_anchors

    table = resolve(model)
    side = image_size or table.image_size
    survey = survey_boxes(ShardDataset(data), most_images)
    if not len(survey.sizes):
        raise UserError(f"{data}: {survey.num_surveyed} images hold no box, so there is nothing to measure")
    sizes = survey.sizes * side
    given = table_anchors(table)
    found = {table.name: (given, anchor_fit(sizes, given, anchor_t))}
    if fit:
        better = fit_anchors(sizes, len(given), len(given[0]), anchor_t, seed)
        found["fitted"] = (better, anchor_fit(sizes, better, anchor_t))
    if as_json:
        facts: dict[str, Any] = {
            "data": data,
            "model": table.name,
            "image_size": side,
            "anchor_t": anchor_t,
            "images": survey.num_surveyed,
            "boxes": len(sizes),
            "anchors": {
                "model" if name == table.name else name: {"anchors": values, **asdict(measured)}
                for name, (values, measured) in found.items()
            },
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{data}: {len(sizes)} boxes on {survey.num_surveyed} images, at {side} px")
    _show(found, wire(table).strides)
    recall = found[table.name][1].recall
    if not fit and recall < GOOD_RECALL:
        typer.echo(f"Boxes out of reach are never learned; {GOOD_RECALL:.0%} is good. --fit shows better anchors,")
        typer.echo("and 'anchors: auto' in a job trains with them.")


def _show(found: dict[str, tuple[Anchors, AnchorFit]], strides: tuple[int, ...]) -> None:
    """Print a line for each set of anchors, then the sets themselves."""
    levels = "".join(f"{f'stride {stride}':>12}" for stride in strides)
    typer.echo(f"{'':<16}{'within reach':>14}{'anchors a box':>15}{'fit':>7}{levels}")
    for name, (_, fit) in found.items():
        shares = "".join(f"{share:>12.1%}" for share in fit.level_shares)
        typer.echo(f"{name:<16}{fit.recall:>14.2%}{fit.anchors_per_box:>15.2f}{fit.fit:>7.3f}{shares}")
    for name, (values, _) in found.items():
        rows = ", ".join(f"[{', '.join(f'{side:g}' for anchor in level for side in anchor)}]" for level in values)
        typer.echo(f"anchors of {name}: [{rows}]")
