"""A model and its scaled forms side by side as SVG, block by block, as Figure 3 of the paper draws compound scaling.

Of every block that has a depth it shows the stacked 3x3 convolutions as squares, and two bars: what the block
concatenates, and what it hands to the next layer. Depth alone widens the first and leaves the second; compound scaling
widens the second by the same ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolofleet.core.errors import UserError
from yolofleet.models.drawing import FONT, MARGIN, WIDTH, Canvas
from yolofleet.models.graph import Concat, Conv
from yolofleet.models.profile import profile
from yolofleet.models.scaling import concatenation_ratio, scale, scaled_fields
from yolofleet.models.wiring import WiredBlock, wire
from yolofleet.specs.blocks import Scaled
from yolofleet.specs.model import ModelTable

SQUARE, STEP, BAR, LINE = 9, 11, 9, 15
"""Side of a square, from one to the next, height of a bar, and from one line to the next, in pixels."""
BETWEEN, NUMBER = 10, 34
"""Between two columns, and the room for a number behind a bar, in pixels."""


@dataclass(frozen=True)
class Column:
    """One form of the model."""

    title: str
    factors: tuple[tuple[str, float], ...]
    """Names and values of the factors that made it from the base."""
    table: ModelTable


@dataclass(frozen=True)
class Figures:
    """What the drawing shows of one block."""

    stacked: int
    """Stacked 3x3 convolutions."""
    concatenated: int
    """Channels of its last concatenation; 0 without one."""
    out: int
    """Channels of its result."""

    @staticmethod
    def of(block: WiredBlock) -> Figures:
        """Return the figures of a block."""
        nodes = block.graph.nodes
        stacked = sum(isinstance(node.layer, Conv) and node.layer.kernel == 3 for node in nodes)
        joined = [node.channels for node in nodes if isinstance(node.layer, Concat)]
        return Figures(stacked, joined[-1] if joined else 0, block.graph.outputs[""].channels)


def scaling_columns(
    base: ModelTable, *, depth: float, transition_width: float | None, hidden_width: float | None
) -> list[Column]:
    """Return the base, the base with more depth alone where that is another model, and the scaled model."""
    deep = scale(base, depth=depth, transition_width=1.0)
    width = concatenation_ratio(base.blocks, deep.blocks) if transition_width is None else transition_width
    scaled = scale(base, depth=depth, transition_width=transition_width, hidden_width=hidden_width)
    inside = () if hidden_width in (None, 1.0) else (("inside", float(hidden_width or 1.0)),)
    columns = [Column("base", (("depth", 1.0), ("width", 1.0)), base)]
    if depth != 1.0 and deep != scaled:
        columns.append(Column("depth alone", (("depth", depth), ("width", 1.0)), deep))
    is_compound = depth != 1.0 and transition_width is None
    title = "compound" if is_compound else "depth alone" if deep == scaled else "scaled"
    return [*columns, Column(title, (("depth", depth), ("width", width), *inside), scaled)]


def draw_scaling(
    base: ModelTable,
    *,
    depth: float = 1.0,
    transition_width: float | None = None,
    hidden_width: float | None = None,
    num_classes: int = 80,
) -> str:
    """Draw a model beside its scaled forms.

    Args:
        base: The block table that is scaled.
        depth: As of `scale`.
        transition_width: As of `scale`.
        hidden_width: As of `scale`.
        num_classes: Classes to predict, for the cost in the headings.

    Returns:
        An SVG document.

    Raises:
        UserError: A factor is impossible, all of them are 1, or no block has a depth.
    """
    columns = scaling_columns(base, depth=depth, transition_width=transition_width, hidden_width=hidden_width)
    if columns[-1].table == base:
        raise UserError(f"model {base.name}: no factor changes it, so there is nothing to compare; give --depth")
    rows = [(row, index) for index, row in enumerate(base.blocks) if _has_depth(row)]
    if not rows:
        raise UserError(f"model {base.name}: no block of it has a depth that could be scaled")
    blocks = [wire(column.table).blocks for column in columns]
    width = (WIDTH - 2 * MARGIN - BETWEEN * (len(columns) - 1)) / len(columns)
    lefts = [MARGIN + (width + BETWEEN) * number for number in range(len(columns))]
    canvas = Canvas()
    canvas.text(MARGIN, 22, f"{base.name}, scaled", "bold", room=WIDTH - 2 * MARGIN)
    y = 0.0
    for left, column in zip(lefts, columns, strict=True):
        y = max(y, _draw_heading(canvas, column, left, width, num_classes))
    for _, index in rows:
        figures = [Figures.of(entry[index]) for entry in blocks]
        block = blocks[0][index]
        label = f"{block.name} {block.kind}" if base.blocks[index].name else block.kind
        canvas.text(MARGIN, y + 14, f"{label}, stride {block.graph.outputs[''].stride}", "small soft", room=WIDTH - 16)
        y = _draw_figures(canvas, figures, lefts, width, y + 20) + 12
    has_inside = any(name == "inside" for name, _ in columns[-1].factors)
    return canvas.svg(
        _draw_legend(canvas, y, has_inside=has_inside), f"{base.name}: {', '.join(column.title for column in columns)}"
    )


def _has_depth(row: object) -> bool:
    return any(scaled_fields(type(row), role) for role in (Scaled.EVEN_STACK, Scaled.STACK))  # type: ignore[arg-type]


def _draw_heading(canvas: Canvas, column: Column, left: float, width: float, num_classes: int) -> float:
    facts = profile(column.table, num_classes=num_classes)
    factors = [f"{name} \u00d7 {round(value, 3):g}" for name, value in column.factors]
    cost = [f"{facts.parameters_deployed / 1e6:.1f} M", f"{facts.gflops_deployed:.1f} GFLOPs"]
    canvas.text(left, 46, column.title, "bold", room=width)
    for number, line in enumerate([*factors, *cost]):
        canvas.text(left, 64 + LINE * number, line, "small", room=width)
    return 64 + LINE * len([*factors, *cost])


def _draw_figures(
    canvas: Canvas, figures: Sequence[Figures], lefts: Sequence[float], width: float, top: float
) -> float:
    """Draw one block in every column; returns where it ends."""
    most = int((width + STEP - SQUARE) // STEP)
    num_lines = max(-(-entry.stacked // most) for entry in figures)
    widest = max(max(entry.concatenated, entry.out) for entry in figures)
    for left, entry in zip(lefts, figures, strict=True):
        for number in range(entry.stacked):
            x, y = left + STEP * (number % most), top + STEP * (number // most)
            canvas.rect(x, y, SQUARE, SQUARE, "cell conv", 2)
        y = top + STEP * num_lines + 4
        for channels, kind in ((entry.concatenated, "pale"), (entry.out, "bar")):
            if channels:
                length = (width - NUMBER) * channels / widest
                canvas.rect(left, y, length, BAR, kind, 2)
                canvas.text(left + length + 4, y + BAR, str(channels), "small", room=NUMBER)
            y += LINE
    return top + STEP * num_lines + 4 + 2 * LINE


def _draw_legend(canvas: Canvas, top: float, *, has_inside: bool) -> float:
    entries = (
        ("cell conv", SQUARE, "a stacked 3x3 convolution"),
        ("pale", 18, "channels that the block concatenates"),
        ("bar", 18, "channels that the next layer gets"),
    )
    y = top + 6
    for kind, length, meaning in entries:
        canvas.rect(MARGIN, y, length, BAR, kind, 2)
        canvas.text(MARGIN + 26, y + BAR, meaning, "small")
        y += 20
    lines = ["M, GFLOPs: parameters and operations, deployed", "width: factor of the layers between blocks"]
    for line in [*lines, *(["inside: factor of those inside a block"] if has_inside else [])]:
        canvas.text(MARGIN, y + BAR, line, "small soft")
        y += 18
    return y + FONT
