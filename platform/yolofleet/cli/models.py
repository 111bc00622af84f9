"""``yolofleet models``: the zoo, and one model in detail with its cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from yolofleet.models.memory import Precision, TrainingMemory
    from yolofleet.models.profile import BlockLine, Profile
    from yolofleet.models.wiring import ModelGraph
    from yolofleet.specs.model import ModelChoice

app = typer.Typer(help="Models: the zoo, block tables, cost.", no_args_is_help=True)

AS_JSON = typer.Option(False, "--json", help="Print only JSON on stdout.")
GIB = 2**30


@app.command("list")
def list_models(
    num_classes: int = typer.Option(80, "--classes", min=1, help="Classes to predict."),
    as_json: bool = AS_JSON,
) -> None:
    """List the models with parameters and GFLOPs, in training and in deployed form, at their own image size."""
    from yolofleet.models.profile import profile
    from yolofleet.models.zoo import zoo_names, zoo_table

    profiles = [profile(zoo_table(name), num_classes=num_classes) for name in zoo_names()]
    if as_json:
        print(json.dumps([entry.document() for entry in profiles], indent=1))
        return
    print(f"{'model':18}{'parameters':>22}{'GFLOPs':>20}{'image':>8}")
    print(f"{'':18}{'training':>12}{'deployed':>10}{'training':>10}{'deployed':>10}{'size':>8}")
    for entry in profiles:
        print(_list_line(entry))


def _list_line(entry: Profile) -> str:
    note = f"  {entry.note}" if entry.note else ""
    return (
        f"{entry.name:18}{entry.parameters / 1e6:>10.2f} M{entry.parameters_deployed / 1e6:>8.2f} M"
        f"{entry.gflops:>10.1f}{entry.gflops_deployed:>10.1f}{entry.image_size:>8}{note}"
    )


@app.command("show")
def show_model(
    model: str = typer.Argument(..., help="Name of the zoo, or path of a block table (YAML)."),
    depth: float = typer.Option(1.0, help="Compound scaling: multiplies the stacked convolutions."),
    transition_width: float | None = typer.Option(None, help="Width factor between blocks; follows from the depth."),
    hidden_width: float | None = typer.Option(None, help="Width factor inside blocks."),
    reparameterize: str | None = typer.Option(None, help="planned, none, or positions such as first,second."),
    reverse_residual: bool | None = typer.Option(None, help="3x3 before 1x1 in residual blocks (paper Figure 7)."),
    auxiliary: str | None = typer.Option(None, help="Auxiliary heads: none, full or partial."),
    num_classes: int = typer.Option(80, "--classes", min=1, help="Classes to predict."),
    image_size: int | None = typer.Option(None, min=32, help="Side of the image in pixels."),
    micro_batch_size: int = typer.Option(1, min=1, help="Images that pass together, for the memory forecast."),
    precision: str = typer.Option("fp32", help="fp32, fp16 or bf16, for the memory forecast."),
    workers: int = typer.Option(1, min=1, help="Workers that share, for the memory forecast."),
    as_json: bool = AS_JSON,
) -> None:
    """Show a model's block table, its cost, and the memory that training it needs."""
    from yolofleet.models.memory import STRATEGIES, training_memory
    from yolofleet.models.profile import block_lines, profile
    from yolofleet.models.wiring import wire
    from yolofleet.models.zoo import resolve

    table = resolve(
        _choice(
            model,
            depth=depth,
            transition_width=transition_width,
            hidden_width=hidden_width,
            reparameterize=_positions(reparameterize),
            reverse_residual=reverse_residual,
            auxiliary=auxiliary,
        )
    )
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
        )
        for strategy in STRATEGIES
    ]
    if as_json:
        print(json.dumps(_document(graph, facts, lines, memory, micro_batch_size, precision), indent=1))
        return
    _print_model(graph, facts, lines)
    _print_memory(memory, micro_batch_size, precision, facts.image_size)


def _choice(model: str, **options: Any) -> ModelChoice:
    """Return what a job would say: the model by name or path, and the options that were given."""
    from yolofleet.specs.model import ModelChoice

    is_path = model.endswith((".yaml", ".yml")) or "/" in model
    given = {key: value for key, value in options.items() if value is not None}
    return ModelChoice.parse({"spec" if is_path else "name": model, **given}, source="models show")


def _positions(text: str | None) -> str | list[str] | None:
    """Read the positions of RepConv: planned, none, or a list separated by commas."""
    return text if text in (None, "planned", "none") else [place.strip() for place in text.split(",")]


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
    from dataclasses import asdict

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


def _print_model(graph: ModelGraph, facts: Profile, lines: list[BlockLine]) -> None:
    table = graph.table
    print(f"{facts.name}: {facts.num_classes} classes, {facts.image_size} px, {table.activation}")
    if facts.note:
        print(f"note: {facts.note}")
    print()
    print(
        f"{'name':16}{'block':12}{'from':18}{'channels':>9}{'stride':>7}{'convs':>6}{'parameters':>12}{'GFLOPs':>8}  "
    )
    for line in lines:
        print(
            f"{line.name:16}{line.block:12}{' '.join(line.sources):18}{line.channels:>9}{line.stride:>7}"
            f"{line.convolutions:>6}{line.parameters:>12,}{line.gflops:>8.2f}  {line.settings}"
        )
    levels = ", ".join(f"{name} (stride {stride})" for (name, _), stride in zip(graph.lead, graph.strides, strict=True))
    auxiliary = f"; {facts.num_auxiliary_levels} auxiliary levels in training" if facts.num_auxiliary_levels else ""
    print(f"\nhead on {levels}, {table.num_anchors} anchors each{auxiliary}")
    print(f"training form: {facts.parameters:>12,} parameters {facts.gflops:>10.2f} GFLOPs")
    print(f"deployed form: {facts.parameters_deployed:>12,} parameters {facts.gflops_deployed:>10.2f} GFLOPs")


def _print_memory(memory: list[TrainingMemory], micro_batch_size: int, precision: str, image_size: int) -> None:
    print(
        f"\nmemory of a worker, GiB ({memory[0].num_workers} workers, micro-batch of {micro_batch_size} at "
        f"{image_size} px, {precision}):"
    )
    columns = ("weights", "gradients", "momentum", "average", "exchange", "activations", "total")
    print(f"{'strategy':10}" + "".join(f"{column:>12}" for column in columns))
    for entry in memory:
        print(f"{entry.strategy:10}" + "".join(f"{getattr(entry, column) / GIB:>12.3f}" for column in columns))
