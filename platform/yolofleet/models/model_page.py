"""The page of a model: its drawing, its block table, its cost, and the memory that training it takes."""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.core.text import plural
from yolofleet.models.memory import TrainingMemory
from yolofleet.models.profile import BlockLine, Profile
from yolofleet.reports.page import Markup, Row, Section, Table, beside, cards, number_cell, render_page, table, text

GIB = 2**30
PARTS = ("weights", "gradients", "momentum", "average", "exchange", "activations", "total")


def render_model(
    facts: Profile,
    lines: Sequence[BlockLine],
    memory: Sequence[TrainingMemory],
    drawing: str,
    micro_batch_size: int,
    precision: str,
) -> str:
    """Return the page of a model.

    Args:
        facts: Its cost.
        lines: Its blocks.
        memory: What training takes, by strategy.
        drawing: Its blocks and connections as SVG.
        micro_batch_size: Images that pass together.
        precision: Of the training.
    """
    figures = {
        "M parameters deployed": f"{facts.parameters_deployed / 1e6:.2f}",
        "M parameters in training": f"{facts.parameters / 1e6:.2f}",
        "GFLOPs deployed": f"{facts.gflops_deployed:.2f}",
        "GFLOPs in training": f"{facts.gflops:.2f}",
        "largest stride": str(facts.max_stride),
    }
    rows: list[Row] = [
        [
            line.name,
            line.block,
            " ".join(line.sources),
            line.channels,
            line.stride,
            line.convolutions,
            line.parameters,
            number_cell(line.gflops, 2),
            line.settings.replace(" ", "\xa0"),  # in one line: the table scrolls in its frame
        ]
        for line in lines
    ]
    head = ("name", "block", "from", "channels", "stride", "convolutions", "parameters", "GFLOPs", "settings")
    needed: list[Row] = [
        [entry.strategy, *(number_cell(getattr(entry, part) / GIB) for part in PARTS)] for entry in memory
    ]
    workers, images = plural(memory[0].num_workers, "worker"), plural(micro_batch_size, "image")
    note = f"What a worker needs, in GiB, by strategy: {workers}, {images} in one pass, {precision}."
    shown = Markup('<div class="drawing">{}</div>').format(Markup(drawing[drawing.index("<svg") :]))
    sections = [
        Section(title="Cost", body=cards(figures) + text(facts.note or "")),
        Section(title="Blocks", body=beside(shown, table(Table(name="Blocks", head=head, rows=rows)))),
        Section(title="Memory", note=note, body=table(Table(name="Memory", head=("strategy", *PARTS), rows=needed))),
    ]
    summary = (
        f"{facts.name} has {facts.parameters_deployed / 1e6:.2f} M parameters and {facts.gflops_deployed:.2f} GFLOPs "
        f"as it is deployed, for images of {facts.image_size} px and {plural(facts.num_classes, 'class')}."
    )
    return render_page(f"Model {facts.name}", sections, summary=summary)
