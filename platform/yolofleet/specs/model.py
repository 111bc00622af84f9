"""The model specs: the model of a job, and the table of blocks that defines a model."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from yolofleet.core.text import did_you_mean, plural
from yolofleet.specs.base import Spec, SpecError, Url, refuse_secrets
from yolofleet.specs.blocks import ROWS, Activation, BlockRow, References, Transition

TABLE_FORMAT = 1

Factor = Annotated[float, Field(ge=0.05, le=16)]
Pixels = Annotated[float, Field(gt=0, le=1e6)]
AnchorRow = Annotated[tuple[Pixels, ...], Field(min_length=2, max_length=200)]
Reparameterize = Literal["planned", "none"] | tuple[str, ...]


class ModelChoice(Spec):
    """The model of a job; the number of classes comes from the data."""

    name: str | None = None
    """A model of the zoo (``yolofleet models list``)."""
    spec: Url | None = None
    """Path of your own block table, instead of a name."""
    depth: Factor = 1.0
    """Multiplies the stacked convolutions of every block; the transition width follows (paper section 3.2)."""
    transition_width: Factor | None = None
    """Multiplies the widths between blocks, instead of the factor that follows from the depth."""
    hidden_width: Factor | None = None
    """Multiplies the widths inside blocks, which compound scaling leaves alone."""
    reparameterize: Reparameterize | None = None
    """Convolutions that are RepConv: planned, none, or a list of positions; those of the table unless given."""
    reverse_residual: bool | None = None
    """Put the 3x3 before the 1x1 in residual blocks (paper Figure 7)."""
    auxiliary: Literal["none", "full", "partial"] | None = None
    """Auxiliary heads: none, on whole blocks, or on the second group of E-ELAN blocks (paper Table 8)."""
    activation: Activation | None = None
    """Another activation than the table's."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.spec is None):
            raise ValueError("a model is given by its name or by its spec (a path), one of the two")
        return self


class HeadSpec(Spec):
    """The lead head: one 1x1 prediction convolution a level."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)
    inputs: References = Field(alias="from")
    """The row of each level, finest first."""
    implicit: bool = True
    """Implicit knowledge: a learned vector added before and one multiplied after each prediction (YOLOR)."""


class AuxiliarySpec(Spec):
    """The auxiliary head, in training only: a 3x3 convolution and a prediction a level (paper section 4.2)."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)
    inputs: References = Field(alias="from")
    """The row of each level; ``name.second`` taps one group of an E-ELAN block (partial auxiliary head)."""
    out: tuple[Transition, ...]
    """Channels of the 3x3 convolution of each level."""


class ModelTable(Spec):
    """A model as a table of blocks."""

    format: Annotated[int, Field(ge=1)] = TABLE_FORMAT
    """Version of the table format."""
    name: str
    """Name of the model."""
    note: str | None = None
    """Remark for readers."""
    image_size: Annotated[int, Field(ge=32, le=8192)]
    """Side of the square that cost is counted at, in pixels."""
    activation: Activation
    """Activation of every convolution unless its row says otherwise."""
    batch_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-3
    """Added to the variance in batch norm."""
    blocks: Annotated[tuple[BlockRow, ...], Field(min_length=1, max_length=20_000)]
    """The rows, in the order of computation."""
    head: HeadSpec
    """Lead head."""
    auxiliary: AuxiliarySpec | None = None
    """Auxiliary head."""
    anchors: Annotated[tuple[AnchorRow, ...], Field(min_length=1)]
    """Anchor widths and heights of each level, in pixels: [w, h, w, h, ...]."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        num_levels = len(self.head.inputs)
        if len(self.anchors) != num_levels:
            raise ValueError(f"head has {plural(num_levels, 'level')} but there are anchors for {len(self.anchors)}")
        if len({len(level) for level in self.anchors}) != 1 or len(self.anchors[0]) % 2:
            raise ValueError("every level needs the same number of anchors, each a width and a height")
        if self.auxiliary is not None and not len(self.auxiliary.inputs) == len(self.auxiliary.out) == num_levels:
            raise ValueError(
                f"auxiliary needs {plural(num_levels, 'row')} and {plural(num_levels, 'width')} as the head has, "
                f"not {len(self.auxiliary.inputs)} and {len(self.auxiliary.out)}"
            )
        names = Counter(row.name for row in self.blocks if row.name is not None)
        if twice := sorted(name for name, count in names.items() if count > 1):
            raise ValueError(f"two rows have the name {', '.join(twice)}; each name is given once")
        return self

    @classmethod
    def parse(cls, document: Any, *, source: str = "document") -> Self:
        """Check a plain document and build the table from it.

        Raises:
            SpecError: Something does not fit.
        """
        check_format(document, source)
        if isinstance(document, dict):
            _check_row_keys(document.get("blocks"), source)
        return super().parse(document, source=source)

    @property
    def num_levels(self) -> int:
        """Levels of the lead head."""
        return len(self.head.inputs)

    @property
    def num_anchors(self) -> int:
        """Anchors of each level."""
        return len(self.anchors[0]) // 2


def check_format(document: Any, source: str) -> None:
    """Refuse a table of a newer format, and one with a secret, before its unknown keys are reported.

    Raises:
        SpecError: Names both formats and the cure, or the key of the secret.
    """
    refuse_secrets(document, source)
    written = document.get("format", TABLE_FORMAT) if isinstance(document, dict) else TABLE_FORMAT
    if isinstance(written, int) and written > TABLE_FORMAT:
        raise SpecError(
            f"{source}: format {written} is newer than this version reads ({TABLE_FORMAT}); upgrade yolofleet"
        )


class DerivedTable(Spec):
    """A model as a scaling of a base, with changes."""

    format: Annotated[int, Field(ge=1)] = TABLE_FORMAT
    """Version of the table format."""
    name: str
    """Name of the model."""
    note: str | None = None
    """Remark for readers."""
    base: str
    """Name or path of the table it starts from."""
    change: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Changed fields: by row name, by kind of block, or under ``table``, ``head``, ``auxiliary``."""
    append: tuple[BlockRow, ...] = ()
    """Rows added at the end, before the changes."""
    depth: Factor = 1.0
    """As in a job's model; applied after the changes."""
    transition_width: Factor | None = None
    """As in a job's model."""
    hidden_width: Factor | None = None
    """As in a job's model."""

    @classmethod
    def parse(cls, document: Any, *, source: str = "document") -> Self:
        """Check a plain document and build the spec from it.

        Raises:
            SpecError: Something does not fit.
        """
        check_format(document, source)
        if isinstance(document, dict):
            _check_row_keys(document.get("append"), source)
        return super().parse(document, source=source)


def _check_row_keys(rows: Any, source: str) -> None:
    """Refuse a row of an unknown kind, or with a key that its kind does not have, and name the nearest.

    Args:
        rows: The rows as plain documents; whatever else is wrong with them is left to the spec.
        source: Name of the document in messages.

    Raises:
        SpecError: Names the row, the key and what is allowed.
    """
    classes = ROWS.items()
    for position, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, dict) or "block" not in row:
            continue
        kind = str(row["block"])
        where = f"{source}: row {position}" + (f" ({row['name']})" if "name" in row else "")
        if kind not in classes:
            raise SpecError(
                f"{where}: no block is called '{kind}'{did_you_mean(kind, classes) or '.'} Known: {', '.join(classes)}"
            )
        allowed = [field.alias or name for name, field in classes[kind].model_fields.items()]
        for key in row:
            if key not in (*allowed, *classes[kind].model_fields):
                hint = did_you_mean(str(key), allowed) or "."
                raise SpecError(f"{where}: block {kind} has no key '{key}'{hint} Allowed: {', '.join(allowed)}")
