"""``yolofleet data anchors``: how well a model's anchors fit the boxes of a dataset, and anchors that fit better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolofleet.cli.options import JsonOption, print_result
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.data.anchors import AnchorFit, Anchors


def anchors(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="The dataset of shards: a path or s3://.", show_default=False)
    ],
    model: Annotated[str, typer.Option(help="Whose anchors: a model's name, or the path of a block table.")],
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Side of the network's input in pixels; the model's unless given.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit anchors to the boxes, and compare them.")] = False,
    anchor_t: Annotated[
        float, typer.Option(min=1.01, help="Largest ratio between the sides of a box and an anchor that can learn it.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fitting.")] = 0,
    most_images: Annotated[int, typer.Option(min=1, help="Read at most this many images, spread evenly.")] = 20_000,
    as_json: JsonOption = False,
) -> None:
    """Measure the share of a dataset's boxes that a model's anchors can learn, and fit better anchors."""
    from yolofleet.core.errors import UserError
    from yolofleet.data.anchors import GOOD_RECALL, anchor_fit, fit_anchors, survey_boxes
    from yolofleet.data.verification import open_verified
    from yolofleet.models.wiring import wire
    from yolofleet.models.zoo import resolve
    from yolofleet.training.setup.preparation import table_anchors

    table = resolve(model)
    side = image_size or table.image_size
    survey = survey_boxes(open_verified(data), most_images)
    if not len(survey.sizes):
        images = plural(survey.num_surveyed, "image contains", "images contain")
        raise UserError(f"{data}: {images} no box, so there is nothing to measure")
    sizes = survey.sizes * side
    given = table_anchors(table)
    fits = {table.name: (given, anchor_fit(sizes, given, anchor_t))}
    if fit:
        better = fit_anchors(sizes, len(given), len(given[0]), anchor_t, seed)
        fits["fitted"] = (better, anchor_fit(sizes, better, anchor_t))
    facts: dict[str, Any] = {
        "data": data,
        "model": table.name,
        "image_size": side,
        "anchor_t": anchor_t,
        "images": survey.num_surveyed,
        "boxes": len(sizes),
        "anchors": {
            "model" if name == table.name else name: {"anchors": values, **asdict(measured)}
            for name, (values, measured) in fits.items()
        },
    }
    lines = [f"{data}: {plural(len(sizes), 'box')} on {plural(survey.num_surveyed, 'image')}, at {side} px"]
    lines += _table(fits, wire(table).strides)
    if not fit and fits[table.name][1].recall < GOOD_RECALL:
        lines.append(f"Boxes out of reach are never learned; {GOOD_RECALL:.0%} is good. --fit shows better anchors,")
        lines.append("and 'anchors: auto' in a job trains with them.")
    print_result(facts, lines, as_json=as_json)


def _table(fits: dict[str, tuple[Anchors, AnchorFit]], strides: tuple[int, ...]) -> Iterator[str]:
    """Yield a line for each set of anchors, then the sets themselves."""
    levels = "".join(f"{f'stride {stride}':>12}" for stride in strides)
    yield f"{'':<16}{'within reach':>14}{'anchors a box':>15}{'fit':>7}{levels}"
    for name, (_, fit) in fits.items():
        shares = "".join(f"{share:>12.1%}" for share in fit.level_shares)
        yield f"{name:<16}{fit.recall:>14.2%}{fit.anchors_per_box:>15.2f}{fit.fit:>7.3f}{shares}"
    for name, (values, _) in fits.items():
        rows = ", ".join(f"[{', '.join(f'{side:g}' for anchor in level for side in anchor)}]" for level in values)
        yield f"anchors of {name}: [{rows}]"
