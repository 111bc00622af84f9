"""A model drawn from its block table as SVG: one box a block, from the image down to its heads.

A box shows the layers of its block in the order of computation, one small square each (underlined where it is
concatenated), and a bar as long as the block is wide. Squares of RepConv, both groups of an E-ELAN block (paper
Figure 2 d), skip connections and the taps of auxiliary heads are distinguished. The drawing is as narrow as a phone's
screen, follows light and dark by itself, and is the same for the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from yolofleet.models.graph import (
    Add,
    Concat,
    Conv,
    Layer,
    MergeGroups,
    Node,
    Pool,
    Reorg,
    SecondHalf,
    Shuffle,
    Upsample,
)
from yolofleet.models.profile import profile
from yolofleet.models.wiring import IMAGE, ModelGraph, Source, WiredBlock, wire
from yolofleet.specs.blocks import ElanRow
from yolofleet.specs.model import ModelTable

WIDTH = 360
"""In pixels; a phone is 390 wide."""
MARGIN, GAP, LANE = 8, 16, 9
"""Between the border and everything, between two boxes, and between two connections, in pixels."""
IMAGE_LINE = 90
"""Where the input stands, below the heading."""
CELL, STEP = 16, 18
"""Side of a square, and from one to the next, in pixels."""
TITLE, BAR, PAD = 20, 4, 6
FONT, SMALL = 13, 11.5
CHARACTER = 0.62
"""Width of a character of the widest common font, in units of its size."""
STYLE = """
text{font-family:system-ui,sans-serif;font-size:13px;fill:#1b1f24}.small{font-size:11.5px}.bold{font-weight:600}
.soft{fill:#5b6573}.end{text-anchor:end}.middle{text-anchor:middle}
.page{fill:#fff}.box{fill:#f5f7f9;stroke:#b9c1cc}.group{fill:none;stroke:#7a8594;stroke-dasharray:2 2}
.cell{fill:#fff;stroke:#9aa4b2}.conv{fill:#d5e3f7;stroke:#6f9bd8}.rep{fill:#f6a88f;stroke:#c9441c}
.identity{stroke-width:2.5}.bar{fill:#3b7dd8}.pale{fill:#a9c7ee}.under{fill:#1b1f24}
.alone{fill:#fdf3ee;stroke:#c9441c;stroke-dasharray:4 3}
.wire{fill:none;stroke:#5b6573;stroke-width:1.3}.tap{stroke:#c9441c;stroke-dasharray:4 3}.tip{fill:#5b6573}
.tip.tap{fill:#c9441c;stroke:none}
@media(prefers-color-scheme:dark){
text,.under{fill:#e7eaee}.soft{fill:#a3adba}.page{fill:#14171b}.box{fill:#1d2229;stroke:#4a5461}.group{stroke:#8b95a3}
.cell{fill:#14171b;stroke:#7a8594}.pale{fill:#2f5a91}.conv{fill:#23456f;stroke:#5f93d8}.rep{fill:#8a3418;stroke:#f0855f}
.alone{fill:#2b1c16;stroke:#f0855f}.wire{stroke:#a3adba}.wire.tap{stroke:#f0855f}.tip{fill:#a3adba}
.tip.tap{fill:#f0855f}}
"""
MARKS: dict[type[Layer], tuple[str, str]] = {
    Pool: ("P", "max pool"),
    Upsample: ("\u2191", "doubled in size"),
    Concat: ("C", "concatenation"),
    Add: ("+", "addition"),
    SecondHalf: ("\u00bd", "half of the channels"),
    Reorg: ("R", "space to depth"),
    Shuffle: ("S", "shuffle of the groups"),
    MergeGroups: ("M", "groups added"),
}


@dataclass(frozen=True)
class Box:
    """A block with its position."""

    block: WiredBlock
    top: float
    height: float
    lines: list[list[Node]]
    """Its layers, as lines of squares."""
    groups: int
    """Lines of each group of an E-ELAN block; 0 for every other block."""

    def outlet(self, tap: str) -> float:
        """Return where a connection leaves it: at its lower part, or at its second group."""
        if tap == "second" and self.groups:
            return self.top + TITLE + STEP * self.groups * 1.5 + PAD
        return self.top + self.height - 8


class Canvas:
    """Collects the elements of a drawing."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", *, room: float = WIDTH) -> None:
        """Write a text, cut to the room that there is for it."""
        size = SMALL if "small" in kind.split() else FONT
        most = max(int(room / (CHARACTER * size)), 1)
        shown = text if len(text) <= most else f"{text[: most - 1]}\u2026"
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{_kind(kind)}>{escape(shown)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 3) -> None:
        """Draw a rectangle."""
        position = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self.parts.append(f"<rect {position}{_kind(kind)}/>")

    def wire(self, points: Sequence[tuple[float, float]], kind: str = "") -> None:
        """Draw a line with an arrow at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{path}"{_kind(f"wire {kind}")}/>')
        (before, _), (x, y) = points[-2], points[-1]
        corners = [(-4, -6), (4, -6)] if before == x else [(-6, -4), (-6, 4)]
        tip = " ".join(f"{x + across:g},{y + down:g}" for across, down in corners)
        self.parts.append(f'<polygon points="{x:g},{y:g} {tip}"{_kind(f"tip {kind}")}/>')

    def cell(self, x: float, y: float, mark: str, kind: str, *, underlined: bool = False) -> None:
        """Draw a square with its mark."""
        self.rect(x, y, CELL, CELL, kind, 2)
        self.text(x + CELL / 2, y + 11.5, mark, "small middle")
        if underlined:
            self.rect(x + 2, y + CELL - 2, CELL - 4, 2, "under", 1)

    def svg(self, height: float, title: str) -> str:
        """Return the whole drawing."""
        size = f'width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
        page = f'<rect width="{WIDTH}" height="{height:g}" class="page"/>'
        return "\n".join([f"{head}<style>{STYLE}</style>{page}", *self.parts, "</svg>\n"])


def _kind(kind: str) -> str:
    return f' class="{kind.strip()}"' if kind.strip() else ""


def draw_model(table: ModelTable, *, num_classes: int = 80) -> str:
    """Draw a model in training form.

    Args:
        table: A block table; scaled and re-parameterised as wanted.
        num_classes: Classes to predict, for the cost in the heading.

    Returns:
        An SVG document.
    """
    graph = wire(table)
    lanes = _lanes(graph)
    left = MARGIN + LANE * (max((lane for lane, _ in lanes.values()), default=-1) + 1) + 10
    facts = profile(table, num_classes=num_classes)
    canvas = Canvas()
    canvas.text(MARGIN, 22, table.name, "bold", room=WIDTH - 2 * MARGIN)
    lines = [
        f"{facts.image_size} px, {table.activation}",
        f"in training, as drawn: {facts.parameters / 1e6:.1f} M parameters",
        f"deployed: {facts.parameters_deployed / 1e6:.1f} M parameters, {facts.gflops_deployed:.1f} GFLOPs",
    ]
    for number, line in enumerate(lines):
        canvas.text(MARGIN, 40 + 16 * number, line, "small soft", room=WIDTH - 2 * MARGIN)
    most = int((WIDTH - MARGIN - left - 2 * PAD + STEP - CELL) // STEP)
    boxes = _stack_boxes(graph, table, top=IMAGE_LINE + GAP, most=most)
    canvas.text((left + WIDTH - MARGIN) / 2, IMAGE_LINE + 2, "image", "small soft middle")
    _draw_wires(canvas, graph, boxes, lanes, left)
    heads, named = _heads(graph), {row.name for row in table.blocks}
    widest = max(block.graph.outputs[""].channels for block in graph.blocks)
    for box in boxes.values():
        _draw_box(canvas, box, left, widest, heads.get(box.block.name), is_named=box.block.name in named)
    bottom = max(box.top + box.height for box in boxes.values()) + GAP
    bottom = _draw_legend(canvas, graph, bottom, has_groups=any(box.groups for box in boxes.values()))
    return canvas.svg(bottom, f"{table.name}: blocks, widths and connections")


def _stack_boxes(graph: ModelGraph, table: ModelTable, top: float, most: int) -> dict[str, Box]:
    """Return the boxes by name, one below the other, with at most so many squares a line."""
    boxes: dict[str, Box] = {}
    rows = [*table.blocks, *[None] * (len(graph.blocks) - len(table.blocks))]
    for block, row in zip(graph.blocks, rows, strict=True):
        nodes = list(block.graph.nodes)
        groups = 0
        if isinstance(row, ElanRow) and row.groups == 2 and row.merge == "branches":
            half = len(nodes) // 2
            first, second = (_wrap(part, most - 3) for part in (nodes[:half], nodes[half : 2 * half]))
            lines, groups = [*first, *second, nodes[2 * half :]], len(first)
        else:
            lines = _wrap(nodes, most)
        height = TITLE + STEP * len(lines) + BAR + PAD + (2 * PAD if groups else 0)
        boxes[block.name] = Box(block, top, height, lines, groups)
        top += height + GAP
    return boxes


def _wrap(nodes: list[Node], most: int) -> list[list[Node]]:
    return [nodes[start : start + most] for start in range(0, len(nodes), most)]


def _lanes(graph: ModelGraph) -> dict[Source, tuple[int, list[int]]]:
    """Return the lane of every output that a later block reads, and the positions of those blocks.

    Lanes are counted from the boxes outwards; outputs that are needed at the same time have lanes of their own.
    """
    positions = {block.name: position for position, block in enumerate(graph.blocks)}
    readers: dict[Source, list[int]] = {}
    for position, block in enumerate(graph.blocks):
        for source in block.sources:
            if source[0] != IMAGE and (source[1] or positions[source[0]] != position - 1):
                readers.setdefault(source, []).append(position)
    lanes: dict[Source, tuple[int, list[int]]] = {}
    # The shortest connections stay nearest to the boxes.
    for source in sorted(readers, key=lambda source: readers[source][-1] - positions[source[0]]):
        start, end = positions[source[0]], readers[source][-1]
        taken = {lane for other, (lane, to) in lanes.items() if positions[other[0]] <= end and start <= to[-1]}
        lane = next(number for number in range(len(lanes) + 1) if number not in taken)
        lanes[source] = (lane, readers[source])
    return lanes


def _draw_wires(
    canvas: Canvas, graph: ModelGraph, boxes: dict[str, Box], lanes: dict[Source, tuple[int, list[int]]], left: float
) -> None:
    names = [block.name for block in graph.blocks]
    middle = (left + WIDTH - MARGIN) / 2
    for position, block in enumerate(graph.blocks):
        above = names[position - 1] if position else IMAGE
        if (above, "") in block.sources:
            top = boxes[block.name].top
            canvas.wire([(middle, top - GAP + (4 if position == 0 else 0)), (middle, top)])
    for (name, tap), (lane, readers) in lanes.items():
        x, y = left - 8 - LANE * lane, boxes[name].outlet(tap)
        for position in readers:
            kind = "tap" if graph.blocks[position].auxiliary else ""
            box = boxes[names[position]]
            canvas.wire([(left, y), (x, y), (x, box.top + 10), (left, box.top + 10)], kind)


def _heads(graph: ModelGraph) -> dict[str, str]:
    """Return what each level of a head is called, by the block that it reads."""
    auxiliary = zip(graph.auxiliary, graph.strides, strict=False)
    return {name: f"lead head /{stride}" for (name, _), stride in zip(graph.lead, graph.strides, strict=True)} | {
        name: f"auxiliary /{stride}" for (name, _), stride in auxiliary
    }


def _draw_box(canvas: Canvas, box: Box, left: float, widest: int, head: str | None, *, is_named: bool) -> None:
    block, width = box.block, WIDTH - MARGIN - left
    result = block.graph.outputs[""]
    canvas.rect(left, box.top, width, box.height, "alone" if block.auxiliary else "box")
    right = head or f"/{result.stride}"
    canvas.text(WIDTH - MARGIN - PAD, box.top + 15, right, f"small end {'bold' if head else 'soft'}")
    inner = {node.layer.out_channels for node in block.graph.nodes if isinstance(node.layer, Conv)} - {result.channels}
    widths = " \u2192 ".join([*([", ".join(map(str, sorted(inner)))] if inner else []), str(result.channels)])
    kind = "conv" if block.auxiliary else block.kind
    title = f"{block.name} {kind}" if is_named else kind
    room = width - 2 * PAD - CHARACTER * SMALL * len(right) - PAD
    canvas.text(left + PAD, box.top + 15, f"{title}  {widths}", "small", room=room)
    y = box.top + TITLE
    joined = _concatenated(block)
    for number, line in enumerate(box.lines):
        x = left + PAD
        if box.groups and number % box.groups == 0 and number < 2 * box.groups:
            y += PAD if number else 0
            across = STEP * max(map(len, box.lines))
            canvas.rect(x - 2, y - 2, across + 2, STEP * box.groups + 2, "group")
            canvas.text(x + across + 6, y + 12, f"group {number // box.groups + 1}", "small")
        if box.groups and number == 2 * box.groups:
            y += PAD
        for node in line:
            canvas.cell(x, y, *_mark(node.layer), underlined=id(node) in joined)
            x += STEP
        y += STEP
    canvas.rect(left + PAD, y + 1, (width - 2 * PAD) * result.channels / widest, BAR, "bar", 2)


def _concatenated(block: WiredBlock) -> set[int]:
    """Return the identities of the layers whose results are concatenated inside the block."""
    nodes, inputs = block.graph.nodes, len(block.graph.inputs)
    joined = {number - inputs for node in nodes if isinstance(node.layer, Concat) for number in node.inputs}
    return {id(nodes[number]) for number in joined if number >= 0}


def _mark(layer: Layer) -> tuple[str, str]:
    """Return what a square says, and its kind."""
    if isinstance(layer, Conv):
        kind = "conv" if not layer.rep else "rep identity" if layer.identity else "rep"
        return str(layer.kernel), f"cell {kind}"
    return MARKS[type(layer)][0], "cell"


def _draw_legend(canvas: Canvas, graph: ModelGraph, top: float, *, has_groups: bool) -> float:
    """Explain what is drawn, and nothing else; returns where the drawing ends."""
    layers = [node.layer for block in graph.blocks for node in block.graph.nodes]
    convolutions = [layer for layer in layers if isinstance(layer, Conv)]
    entries: dict[tuple[str, str], str] = {}
    for conv in sorted(convolutions, key=lambda conv: conv.rep):
        identity = "with identity" if conv.identity else "without identity"
        meaning = f"RepConv (3x3 and 1x1), {identity}" if conv.rep else "convolution, by the side of its kernel"
        entries.setdefault(("3", _mark(conv)[1]), meaning)
    for layer in layers:
        if not isinstance(layer, Conv):
            entries.setdefault(_mark(layer), MARKS[type(layer)][1])
    y = top
    for (mark, kind), meaning in entries.items():
        canvas.cell(MARGIN, y, mark, kind)
        canvas.text(MARGIN + 26, y + 12, meaning, "small", room=WIDTH - 2 * MARGIN - 26)
        y += 20
    if any(_concatenated(block) for block in graph.blocks):
        canvas.cell(MARGIN, y, "", "cell", underlined=True)
        canvas.text(MARGIN + 26, y + 12, "what the next C concatenates", "small")
        y += 20
    canvas.rect(MARGIN, y + 6, CELL, BAR, "bar", 2)
    canvas.text(MARGIN + 26, y + 12, "channels inside \u2192 outside; /8: stride", "small")
    y += 20
    if graph.auxiliary:
        canvas.wire([(MARGIN, y + 8), (MARGIN + 18, y + 8)], "tap")
        canvas.text(MARGIN + 26, y + 12, "auxiliary head and its tap, in training only", "small")
        y += 20
    if has_groups:
        canvas.rect(MARGIN, y + 2, CELL, CELL - 4, "group")
        canvas.text(MARGIN + 26, y + 12, "one group of an E-ELAN block; both are added", "small")
        y += 20
    return y + MARGIN
