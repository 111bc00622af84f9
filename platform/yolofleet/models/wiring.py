"""Wiring of a block table: the inputs of every row resolved, its layers written out, channels and strides known.

Every mistake of a table is found here, before any tensor exists, and named with the row and the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolofleet.core.text import and_more, did_you_mean, plural
from yolofleet.models.blocks import build_block
from yolofleet.models.graph import BlockGraph, GraphError
from yolofleet.specs.blocks import ConvRow, Row
from yolofleet.specs.model import ModelTable

IMAGE = "image"
IMAGE_CHANNELS = 3
AUXILIARY = "auxiliary_"
MOST_LAYERS = 20_000
"""The largest model of the zoo has 308."""
MOST_WEIGHTS = 2 * 10**9
MOST_NAMED = 100

Source = tuple[str, str]
"""A row's name and the tap of its output that is read (empty: its result)."""


@dataclass(frozen=True, slots=True)
class WiredBlock:
    """A row of the table with its inputs resolved."""

    name: str
    kind: str
    sources: tuple[Source, ...]
    graph: BlockGraph
    auxiliary: bool = False
    """Needed by the auxiliary head only."""


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """A whole model as blocks in the order of computation, and the levels of its heads."""

    table: ModelTable
    blocks: tuple[WiredBlock, ...]
    lead: tuple[Source, ...]
    lead_channels: tuple[int, ...]
    auxiliary: tuple[Source, ...]
    auxiliary_channels: tuple[int, ...]
    strides: tuple[int, ...]
    """Pixels of the image a cell of each level covers."""

    @property
    def max_stride(self) -> int:
        """The number that image sides are multiples of."""
        return max(feature.stride for block in self.blocks for feature in block.graph.outputs.values())


def wire(table: ModelTable) -> ModelGraph:
    """Wire up a block table.

    Raises:
        GraphError: A reference has no target or closes a cycle, channels or strides do not fit, or a row is used by
            nothing; names the row and the numbers.
    """
    names = _row_names(table)
    positions = {name: position for position, name in enumerate(names)}
    blocks: list[WiredBlock] = []
    num_layers = num_weights = 0
    shapes: dict[Source, tuple[int, int]] = {(IMAGE, ""): (IMAGE_CHANNELS, 1)}
    for position, (name, row) in enumerate(zip(names, table.blocks, strict=True)):
        above = names[position - 1] if position else IMAGE
        sources = tuple(_split(reference) for reference in row.inputs) or ((above, ""),)
        _check_sources(table, names, positions, position, sources)
        blocks.append(_wire_row(table, name, row, sources, shapes))
        num_layers += len(blocks[-1].graph.nodes)
        num_weights += blocks[-1].graph.num_weights
        if num_layers > MOST_LAYERS or num_weights > MOST_WEIGHTS:
            raise GraphError(
                f"model {table.name}: block {name} ({row.block}): up to here it has {plural(num_layers, 'layer')} and "
                f"{plural(num_weights, 'weight')}, more than the {MOST_LAYERS:,} and {MOST_WEIGHTS:,} that a model may "
                "have; use smaller widths or fewer rows"
            )
    lead = tuple(_split(reference) for reference in table.head.inputs)
    _check_head(table, "head", lead, shapes)
    auxiliary = _wire_auxiliary(table, shapes, blocks)
    _check_all_used(table, blocks, (*lead, *auxiliary))
    strides = tuple(shapes[source][1] for source in lead)
    if list(strides) != sorted(set(strides)):
        raise GraphError(f"model {table.name}: head levels go from fine to coarse; their strides are {list(strides)}")
    return ModelGraph(
        table=table,
        blocks=tuple(blocks),
        lead=lead,
        lead_channels=tuple(shapes[source][0] for source in lead),
        auxiliary=auxiliary,
        auxiliary_channels=tuple(shapes[source][0] for source in auxiliary),
        strides=strides,
    )


def _row_names(table: ModelTable) -> list[str]:
    """Return each row's name; a nameless row is called by its kind and its position among the table's rows."""
    names = [row.name or f"{row.block}_{position}" for position, row in enumerate(table.blocks)]
    taken = {IMAGE}
    for name in names:
        if name in taken or name.startswith(AUXILIARY):
            raise GraphError(f"model {table.name}: block {name}: the name is taken; choose another")
        taken.add(name)
    return names


def _split(reference: str) -> Source:
    name, _, tap = reference.partition(".")
    return name, tap


def _wire_row(
    table: ModelTable,
    name: str,
    row: Row,
    sources: tuple[Source, ...],
    shapes: dict[Source, tuple[int, int]],
    auxiliary: bool = False,
) -> WiredBlock:
    """Write a row out and note the shapes of its outputs."""
    kind = str(getattr(row, "block", ""))
    where = f"model {table.name}: block {name} ({kind})"
    if row.num_inputs is not None and len(sources) != row.num_inputs:
        raise GraphError(f"{where}: reads {plural(len(sources), 'input')}, it needs {row.num_inputs}")
    if missing := [".".join(source) for source in sources if source not in shapes]:
        raise GraphError(f"{where}: {missing[0]}: no such tap")
    try:
        graph = build_block(row, [shapes[source] for source in sources], table.activation)
    except GraphError as error:
        read = ", ".join(
            f"{name}: {plural(channels, 'channel')}, stride {stride}"
            for (name, _), (channels, stride) in ((source, shapes[source]) for source in sources)
        )
        raise GraphError(f"{where}: {error} (it reads {read})") from None
    for tap, feature in graph.outputs.items():
        shapes[name, tap] = (feature.channels, feature.stride)
    return WiredBlock(name, kind, sources, graph, auxiliary)


def _wire_auxiliary(
    table: ModelTable, shapes: dict[Source, tuple[int, int]], blocks: list[WiredBlock]
) -> tuple[Source, ...]:
    """Add the 3x3 convolutions of the auxiliary head."""
    if table.auxiliary is None:
        return ()
    taps = tuple(_split(reference) for reference in table.auxiliary.inputs)
    _check_head(table, "auxiliary", taps, shapes)
    levels: list[Source] = []
    for level, (source, width) in enumerate(zip(taps, table.auxiliary.out, strict=True)):
        name = f"{AUXILIARY}{level}"
        row = ConvRow(block="conv", out=width)
        blocks.append(_wire_row(table, name, row, (source,), shapes, auxiliary=True))
        levels.append((name, ""))
    return tuple(levels)


def _check_sources(
    table: ModelTable, names: list[str], positions: dict[str, int], position: int, sources: tuple[Source, ...]
) -> None:
    for source, _ in sources:
        if source == IMAGE or positions.get(source, position) < position:
            continue
        where = f"model {table.name}: block {names[position]}"
        if source in positions:
            loop = _find_cycle(table, names, names[position])
            reason = (
                f"a cycle: {and_more(loop, MOST_NAMED, separator=' <- ')}"
                if loop
                else "that row comes later; move it up"
            )
            raise GraphError(f"{where}: reads '{source}': {reason}")
        above = names[max(position - MOST_NAMED, 0) : position]
        hint = did_you_mean(source, above)
        raise GraphError(
            f"{where}: reads '{source}', which is not the name of a row{hint} Rows above: {', '.join(above)}"
        )


def _find_cycle(table: ModelTable, names: list[str], start: str) -> list[str]:
    """Return the rows of a cycle through ``start``, or nothing if there is none."""
    reads = {
        name: [_split(reference)[0] for reference in row.inputs] or names[max(position - 1, 0) : position]
        for position, (name, row) in enumerate(zip(names, table.blocks, strict=True))
    }
    waiting, reader_of = [start], {start: ""}
    for name in waiting:  # it grows
        for source in reads.get(name, []):
            if source == start:
                loop = [start, name]
                while loop[-1] != start:
                    loop.append(reader_of[loop[-1]])
                return loop[::-1]
            if source not in reader_of:
                reader_of[source] = name
                waiting.append(source)
    return []


def _check_head(table: ModelTable, key: str, levels: tuple[Source, ...], shapes: dict[Source, tuple[int, int]]) -> None:
    for name, tap in levels:
        if (name, tap) in shapes:
            continue
        known = [".".join(source) if source[1] else source[0] for source in list(shapes)[-MOST_NAMED:]]
        reference, hint = f"{name}.{tap}" if tap else name, did_you_mean(name, known)
        raise GraphError(f"model {table.name}: {key} reads '{reference}', which is not a row's output{hint}")


def _check_all_used(table: ModelTable, blocks: list[WiredBlock], levels: tuple[Source, ...]) -> None:
    used = {source for block in blocks for source, _ in block.sources} | {source for source, _ in levels}
    if unused := [block.name for block in blocks if block.name not in used]:
        names = and_more(unused, MOST_NAMED)
        raise GraphError(f"model {table.name}: nothing reads the output of {names}; drop the row or use it")
