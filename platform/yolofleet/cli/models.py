"""``yolofleet models``: lists the zoo, and shows one model's blocks, cost and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from yolofleet.cli.options import JsonOption, print_result
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    from yolofleet.models.memory import Precision, TrainingMemory
    from yolofleet.models.profile import BlockLine, Profile
    from yolofleet.models.wiring import ModelGraph
    from yolofleet.specs.model import ModelChoice

app = typer.Typer(help="Models: list, show, compare, benchmark.", no_args_is_help=True)

NumClasses = Annotated[int, typer.Option("--classes", min=1, help="Classes to predict.")]
GIB = 2**30


@app.command("list")
def list_models(num_classes: NumClasses = 80, as_json: JsonOption = False) -> None:
    """List the models with parameters and GFLOPs, in training and in deployed form, at their own image size."""
    from yolofleet.models.profile import profile
    from yolofleet.models.zoo import zoo_names, zoo_table

    profiles = [profile(zoo_table(name), num_classes=num_classes) for name in zoo_names()]
    lines = [
        f"{'model':18}{'parameters':>22}{'GFLOPs':>20}{'image':>8}",
        f"{'':18}{'training':>12}{'deployed':>10}{'training':>10}{'deployed':>10}{'size':>8}",
        *map(_list_line, profiles),
    ]
    print_result([entry.document() for entry in profiles], lines, as_json=as_json)


def _list_line(entry: Profile) -> str:
    note = f"  {entry.note}" if entry.note else ""
    return (
        f"{entry.name:18}{entry.parameters / 1e6:>10.2f} M{entry.parameters_deployed / 1e6:>8.2f} M"
        f"{entry.gflops:>10.1f}{entry.gflops_deployed:>10.1f}{entry.image_size:>8}{note}"
    )


@app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, or path of a block table (YAML).")],
    depth: Annotated[float, typer.Option(help="Compound scaling: multiplies the stacked convolutions.")] = 1.0,
    transition_width: Annotated[
        float | None, typer.Option(help="Width factor between blocks. Default: follows from the depth.")
    ] = None,
    hidden_width: Annotated[float | None, typer.Option(help="Width factor inside blocks.")] = None,
    reparameterize: Annotated[
        str | None, typer.Option(help="Positions of RepConv: planned, none, or a list such as first,second.")
    ] = None,
    reverse_residual: Annotated[
        bool | None, typer.Option(help="3x3 before 1x1 in residual blocks (paper Figure 7).")
    ] = None,
    auxiliary: Annotated[str | None, typer.Option(help="Auxiliary heads: none, full or partial.")] = None,
    num_classes: NumClasses = 80,
    image_size: Annotated[int | None, typer.Option(min=32, help="Side of the image in pixels.")] = None,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="Images in a micro-batch, for the memory forecast.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16, for the memory forecast.")] = "fp32",
    workers: Annotated[int, typer.Option(min=1, help="Number of workers, for the memory forecast.")] = 1,
    memory_use: Annotated[
        Literal["fast", "balanced", "small"],
        typer.Option("--memory", help="The job's `memory`: fast, balanced or small, for the memory forecast."),
    ] = "fast",
    draw: Annotated[Path | None, typer.Option(help="Draw its blocks and connections into this file (SVG).")] = None,
    draw_scaling: Annotated[
        Path | None, typer.Option(help="Draw the scaled model beside the unscaled one into this file (SVG).")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with all of it to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's block table, its cost, and the memory that training it needs."""
    from yolofleet.models.memory import STRATEGIES, training_memory
    from yolofleet.models.profile import block_lines, profile
    from yolofleet.models.wiring import wire
    from yolofleet.models.zoo import resolve

    factors: dict[str, Any] = {
        "depth": depth,
        "transition_width": transition_width,
        "hidden_width": hidden_width,
    }
    form = {
        "reparameterize": _parse_positions(reparameterize),
        "reverse_residual": reverse_residual,
        "auxiliary": auxiliary,
    }
    table = resolve(_choice(model, **factors, **form))
    if draw is not None:
        from yolofleet.models.drawing import draw_model

        _write_text(draw, draw_model(table, num_classes=num_classes))
    if draw_scaling is not None:
        from yolofleet.models.scaling_drawing import draw_scaling as side_by_side

        base = resolve(_choice(model, **form))
        _write_text(draw_scaling, side_by_side(base, num_classes=num_classes, **factors))
    graph = wire(table)
    facts = profile(table, num_classes=num_classes, image_size=image_size)
    size = (facts.image_size, facts.image_size)
    lines = block_lines(graph, size)
    memory = [
        training_memory(
            graph,
            num_classes=num_classes,
            size=size,
            micro_batch_size=micro_batch_size,
            precision=_precision(precision),
            strategy=strategy,
            num_workers=workers,
            memory=memory_use,
        )
        for strategy in STRATEGIES
    ]
    if html is not None:
        from yolofleet.models.drawing import draw_model
        from yolofleet.models.model_page import render_model

        page = render_model(
            facts, lines, memory, draw_model(table, num_classes=num_classes), micro_batch_size, precision
        )
        _write_text(html, page)
    document = _document(graph, facts, lines, memory, micro_batch_size, precision)
    shown = [*_model_lines(graph, facts, lines), *_memory_lines(memory, micro_batch_size, precision, facts.image_size)]
    print_result(document, shown, as_json=as_json)


def _write_text(path: Path, text: str) -> None:
    from yolofleet.core.errors import UserError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    note(f"written: {path}")


def _choice(model: str, **options: Any) -> ModelChoice:
    """Return the model by name or path with the options that were given, as a job names it."""
    from yolofleet.specs.model import ModelChoice

    is_path = model.endswith((".yaml", ".yml")) or "/" in model
    given = {key: value for key, value in options.items() if value is not None}
    return ModelChoice.parse({"spec" if is_path else "name": model, **given}, source="models show")


def _parse_positions(text: str | None) -> str | list[str] | None:
    """Read the positions of RepConv: one of the two words, or a list separated by commas."""
    return text if text in (None, "planned", "none") else [position.strip() for position in text.split(",")]


def _precision(text: str) -> Precision:
    from yolofleet.core.errors import UserError

    match text:
        case "fp32" | "fp16" | "bf16":
            return text
        case _:
            raise UserError(f"--precision: '{text}' is not one of fp32, fp16, bf16")


def _document(
    graph: ModelGraph,
    facts: Profile,
    lines: list[BlockLine],
    memory: list[TrainingMemory],
    micro_batch_size: int,
    precision: str,
) -> dict[str, Any]:
    return {
        **facts.document(),
        "strides": list(graph.strides),
        "blocks": [asdict(line) for line in lines],
        "memory": {
            "micro_batch_size": micro_batch_size,
            "precision": precision,
            "strategies": [{**asdict(entry), "total": entry.total} for entry in memory],
        },
        "table": graph.table.document(),
    }


def _model_lines(graph: ModelGraph, facts: Profile, lines: list[BlockLine]) -> Iterator[str]:
    table = graph.table
    yield f"{facts.name}: {plural(facts.num_classes, 'class')}, {facts.image_size} px, {table.activation}"
    if facts.note:
        yield f"note: {facts.note}"
    yield ""
    yield (
        f"{'name':16}{'block':12}{'from':18}{'channels':>9}{'stride':>7}{'convs':>6}{'parameters':>12}{'GFLOPs':>8}  "
    )
    for line in lines:
        yield (
            f"{line.name:16}{line.block:12}{' '.join(line.sources):18}{line.channels:>9}{line.stride:>7}"
            f"{line.convolutions:>6}{line.parameters:>12,}{line.gflops:>8.2f}  {line.settings}"
        )
    levels = ", ".join(f"{name} (stride {stride})" for (name, _), stride in zip(graph.lead, graph.strides, strict=True))
    levels_in_training = plural(facts.num_auxiliary_levels, "auxiliary level")
    auxiliary = f"; {levels_in_training} in training" if facts.num_auxiliary_levels else ""
    yield ""
    yield f"head on {levels}, {plural(table.num_anchors, 'anchor')} each{auxiliary}"
    yield f"training form: {facts.parameters:>12,} parameters {facts.gflops:>10.2f} GFLOPs"
    yield f"deployed form: {facts.parameters_deployed:>12,} parameters {facts.gflops_deployed:>10.2f} GFLOPs"


def _memory_lines(
    memory: list[TrainingMemory], micro_batch_size: int, precision: str, image_size: int
) -> Iterator[str]:
    yield (
        f"\nmemory of a worker, GiB ({plural(memory[0].num_workers, 'worker')}, micro-batch of {micro_batch_size} at "
        f"{image_size} px, {precision}):"
    )
    columns = ("weights", "gradients", "momentum", "average", "exchange", "activations", "total")
    yield f"{'strategy':10}" + "".join(f"{column:>12}" for column in columns)
    for entry in memory:
        yield f"{entry.strategy:10}" + "".join(f"{getattr(entry, column) / GIB:>12.3f}" for column in columns)
