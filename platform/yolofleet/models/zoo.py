"""The zoo: the block tables in the folder `zoo`, and the table that a model choice means.

A table may start from another one and change it; a choice may scale it, re-parameterise it or change its heads.

Re-parameterising puts RepConv at chosen positions, in which the rows of the paper's Tables 4 and 5 differ. The rule
(section 4.1, Figure 4): a RepConv whose result is added to a residual or concatenated has no identity branch
(RepConvN); elsewhere it has one where the widths allow. ``BlockBuilder.finish`` applies it to a block's graph.

A *position* names a convolution by what it does. In an ELAN block the stacked convolutions come in stacks of two:
``first`` is the one inside a stack, ``second`` the one that ends it and is concatenated. In a residual block the 3x3
is ``residual``. ``head`` is the 3x3 in front of a prediction. ``+identity`` after a position forces the identity branch
against the rule, as a naive replacement would.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean
from yolofleet.models.scaling import scale
from yolofleet.specs.base import SpecError
from yolofleet.specs.blocks import BlockRow, ConvRow, CspRow, DarkRow, ElanRow
from yolofleet.specs.model import AuxiliarySpec, DerivedTable, ModelChoice, ModelTable, Reparameterize
from yolofleet.specs.yaml_document import read_yaml

PLAN = ("head", "first", "second", "residual")
FORCED = ("first+identity", "second+identity", "residual+identity")
POSITIONS = PLAN + FORCED
ZOO = Path(__file__).parent / "zoo"
MOST_DERIVATIONS = 8
PARTS = ("table", "head", "auxiliary")


@cache
def zoo_names() -> tuple[str, ...]:
    """Return the names of all models of the zoo."""
    return tuple(sorted(path.stem for path in ZOO.glob("*.yaml")))


@cache
def zoo_table(name: str) -> ModelTable:
    """Return a model of the zoo.

    Raises:
        UserError: No model has that name; the nearest names are given.
    """
    if name not in zoo_names():
        hint = did_you_mean(name.lower(), zoo_names()) or "."
        raise UserError(f"model: no model is called '{name}'{hint} Known: {', '.join(zoo_names())}")
    return load_table(ZOO / f"{name}.yaml")


def load_table(path: str | Path) -> ModelTable:
    """Read a block table, or one derived from another.

    Raises:
        UserError: The file cannot be read, or a key or value does not fit.
    """
    return _load(Path(path), ())


def resolve(choice: str | Path | ModelChoice | ModelTable) -> ModelTable:
    """Return the table that a choice means, scaled and re-parameterised as the choice says.

    Args:
        choice: A model's name, a job's model choice, a table, or the path of a YAML table.

    Raises:
        UserError: The model is not known, a factor is impossible, or a position of RepConv does not exist.
    """
    if isinstance(choice, ModelTable):
        return choice
    if not isinstance(choice, ModelChoice):
        return _load_named(choice)
    table = zoo_table(choice.name) if choice.name is not None else load_table(str(choice.spec))
    if choice.activation is not None:
        table = table.model_copy(update={"activation": choice.activation})
    if choice.auxiliary is not None:
        table = _with_auxiliary(table, choice.auxiliary)
    if choice.reverse_residual is not None:
        table = _with_reversed_residuals(table, choice.reverse_residual)
    if choice.reparameterize is not None:
        table = reparameterize(table, choice.reparameterize)
    return scale(table, depth=choice.depth, transition_width=choice.transition_width, hidden_width=choice.hidden_width)


def _load_named(choice: str | Path) -> ModelTable:
    """Return the table of a name, or of a path where it looks like one."""
    is_path = isinstance(choice, Path) or choice.endswith((".yaml", ".yml")) or "/" in choice
    return load_table(choice) if is_path else zoo_table(choice)


def _load(path: Path, above: tuple[Path, ...]) -> ModelTable:
    path = path.resolve()
    if path in above or len(above) >= MOST_DERIVATIONS:
        cycle = " -> ".join(table.name for table in (*above, path))
        raise SpecError(f"{path}: base: tables derive from each other in a cycle: {cycle}")
    document = read_yaml(path)
    if not isinstance(document, dict) or "base" not in document:
        return ModelTable.parse(document, source=str(path))
    derived = DerivedTable.parse(document, source=str(path))
    if derived.base.endswith((".yaml", ".yml")) or "/" in derived.base:
        base = _load(path.parent / derived.base, (*above, path))
    elif path.parent == ZOO:
        base = _load(ZOO / f"{derived.base}.yaml", (*above, path))
    else:
        base = zoo_table(derived.base)
    table = ModelTable.parse(_apply_changes(base, derived, str(path)), source=str(path))
    return scale(
        table, depth=derived.depth, transition_width=derived.transition_width, hidden_width=derived.hidden_width
    )


def _apply_changes(base: ModelTable, derived: DerivedTable, source: str) -> dict[str, Any]:
    """Return the base as a plain document, with the derived table's changes."""
    document = base.model_dump(mode="json", exclude_defaults=True)
    document["name"] = derived.name
    document.pop("note", None)
    document["blocks"] += [row.model_dump(mode="json", exclude_defaults=True) for row in derived.append]
    if derived.note is not None:
        document["note"] = derived.note
    for selector, fields in derived.change.items():
        if selector in PARTS:
            _change(document if selector == "table" else document.setdefault(selector, {}), fields)
            continue
        rows = [row for row in document["blocks"] if selector in (row.get("name"), row["block"])]
        if not rows:
            raise SpecError(
                f"{source}: change.{selector}: {base.name} has no row of that name or kind, "
                f"and it is none of {', '.join(PARTS)}"
            )
        for row in rows:
            _change(row, fields)
    return document


def _change(target: dict[str, Any], fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value


def _with_auxiliary(table: ModelTable, choice: str) -> ModelTable:
    """Return the table without auxiliary head, or with one on whole blocks or on the second group of each (Table 8)."""
    if choice == "none":
        return table.model_copy(update={"auxiliary": None})
    if table.auxiliary is None:
        raise UserError(f"model {table.name}: auxiliary: it has no auxiliary head to change; only 'none' is possible")
    grouped = {row.name for row in table.blocks if isinstance(row, ElanRow) and row.groups > 1}
    names = [reference.partition(".")[0] for reference in table.auxiliary.inputs]
    if choice == "partial" and not grouped.intersection(names):
        raise UserError(f"model {table.name}: auxiliary: partial needs E-ELAN blocks (two groups); try yolov7-e6e")
    inputs = tuple(f"{name}.second" if choice == "partial" and name in grouped else name for name in names)
    return table.model_copy(update={"auxiliary": AuxiliarySpec(inputs=inputs, out=table.auxiliary.out)})


def _with_reversed_residuals(table: ModelTable, reverse: bool) -> ModelTable:
    """Return the table with dark blocks reversed, 3x3 before 1x1 (paper Figure 7)."""
    rows = tuple(
        row.model_copy(update={"reverse": reverse})
        if isinstance(row, DarkRow) or (isinstance(row, CspRow) and row.residual == "dark")
        else row
        for row in table.blocks
    )
    if rows == table.blocks and reverse:
        raise UserError(f"model {table.name}: reverse_residual: it has no dark blocks to reverse")
    return table.model_copy(update={"blocks": rows})


def reparameterize(table: ModelTable, choice: Reparameterize) -> ModelTable:
    """Return the table with RepConv at the chosen positions and nowhere else.

    Args:
        table: A block table.
        choice: ``planned`` (every position, identity by the rule), ``none``, or a list of positions.

    Raises:
        UserError: A position is not known, or the table has no such convolution.
    """
    positions = PLAN if choice == "planned" else () if choice == "none" else tuple(choice)
    for position in positions:
        _check_known(position)
    before_head = {reference.partition(".")[0] for reference in table.head.inputs}
    rows = tuple(_row_with(row, positions, row.name in before_head) for row in table.blocks)
    if not isinstance(choice, str):
        _check_used(table, rows, positions, before_head)
    return table.model_copy(update={"blocks": rows})


def _row_with(row: BlockRow, positions: tuple[str, ...], before_head: bool) -> BlockRow:
    match row:
        case ElanRow():
            return row.model_copy(update={"rep": tuple(p for p in positions if p.startswith(("first", "second")))})
        case DarkRow() | CspRow():
            return row.model_copy(update={"rep": tuple(p for p in positions if p.startswith("residual"))})
        case ConvRow():
            rep = before_head and "head" in positions and row.kernel == 3 and row.stride == 1
            return row.model_copy(update={"rep": rep})
        case _:
            return row


def _check_known(position: str) -> None:
    if position not in POSITIONS:
        raise UserError(
            f"reparameterize: unknown position '{position}'{did_you_mean(position, POSITIONS)} "
            f"Known: {', '.join(POSITIONS)}, or planned, or none"
        )


def _check_used(
    table: ModelTable, rows: tuple[BlockRow, ...], positions: tuple[str, ...], before_head: set[str]
) -> None:
    used = {position for row in rows if isinstance(row, ElanRow | DarkRow | CspRow) for position in row.rep}
    used |= {"head" for row in rows if isinstance(row, ConvRow) and row.rep and row.name in before_head}
    if unused := [position for position in positions if position not in used]:
        raise UserError(f"reparameterize: model {table.name} has no convolution at {', '.join(unused)}")
