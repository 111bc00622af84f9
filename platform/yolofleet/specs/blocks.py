"""The rows of a block table: one class a kind of block, each field marked by what compound scaling does to it.

``Transition`` widths are those of the layers between computational blocks, ``Hidden`` widths are those inside one,
``Stack`` is the number of stacked convolutions or residual blocks (paper section 3.2).
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    SerializeAsAny,
    Tag,
)

from yolofleet.core.errors import UserError
from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.specs.base import Spec


class Scaled(Enum):
    """Which factor of compound scaling a field follows."""

    TRANSITION = "transition width"
    HIDDEN = "hidden width"
    EVEN_STACK = "depth, kept even"
    STACK = "depth"


def _as_tuple(value: Any) -> Any:
    """Let ``from: f3`` stand for ``from: [f3]``."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Width = Annotated[int, Field(ge=1, le=65536)]
Transition = Annotated[Width, Scaled.TRANSITION]
Hidden = Annotated[Width, Scaled.HIDDEN]
EvenStack = Annotated[int, Field(ge=2, le=256, multiple_of=2), Scaled.EVEN_STACK]
Stack = Annotated[int, Field(ge=1, le=256), Scaled.STACK]
RowName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
Reference = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$", max_length=200)]
References = Annotated[tuple[Reference, ...], BeforeValidator(_as_tuple)]
Activation = Literal["silu", "leaky_relu", "mish"]
DownSampling = Literal["conv", "pool_conv", "split", "pool"]


class Row(Spec):
    """One row of a block table."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)
    num_inputs: ClassVar[int | None] = 1

    name: RowName | None = None
    """Name by which other rows refer to it; a row that no other row reads needs none."""
    inputs: References = Field(default=(), alias="from")
    """Names of the rows it reads (``name.tap`` for a block's second output); the row above unless given."""
    activation: Activation | None = None
    """Another activation than the table's."""
    block: str
    """The kind of block; a literal in every kind. The digest of a table depends on the order of fields."""


class ReorgRow(Row):
    """Space to depth by 2: 3 channels become 12."""

    block: Literal["reorg"]


class ConvRow(Row):
    """Convolution, batch norm, activation."""

    block: Literal["conv"]
    out: Transition
    """Output channels."""
    kernel: Literal[1, 3, 5, 6, 7] = 3
    """Side of the kernel, in pixels."""
    stride: Literal[1, 2] = 1
    """2 halves the resolution."""
    rep: bool = False
    """RepConv in training: a 1x1 branch beside the 3x3, folded into it for deployment (paper section 4.1)."""


class AlternateRow(Row):
    """A chain of 1x1 convolutions to ``out`` channels and 3x3 ones to twice as many, by turns, starting with a 1x1."""

    block: Literal["alternate"]
    out: Transition
    """Channels of the 1x1 convolutions."""
    convs: Annotated[int, Field(ge=1, le=16)]
    """Convolutions in the chain."""


class ElanRow(Row):
    """Efficient layer aggregation (paper Figure 2 c; with ``groups: 2`` the extended one, Figure 2 d).

    With one group, its tap ``parts`` is what the closing convolution reads: the concatenated convolutions.
    """

    block: Literal["elan"]
    hidden: Hidden
    """Channels of the two 1x1 convolutions that open the block."""
    chain: Hidden | None = None
    """Channels of the stacked 3x3 convolutions; as ``hidden`` unless given."""
    stack: EvenStack
    """Stacked 3x3 convolutions."""
    out: Transition
    """Channels of the closing 1x1 convolution."""
    taps: Literal["every_second", "all"] = "every_second"
    """Which of the stacked convolutions are concatenated."""
    groups: Literal[1, 2] = 1
    """Cardinality: 2 expands, shuffles and merges (E-ELAN); its tap ``second`` is the second group before the merge."""
    merge: Literal["branches", "grouped"] = "branches"
    """How two groups are computed: as two branches and a sum, or as group convolutions, shuffle and sum."""
    rep: tuple[str, ...] = ()
    """Positions of RepConv in each stack of two (see ``yolofleet.models.zoo``)."""


class DownRow(Row):
    """Halves the resolution: a strided 3x3, pool beside convolution, split channels, or a bare max pool."""

    block: Literal["down"]
    method: DownSampling
    """conv: 3x3, stride 2; pool_conv: MPC; split: DownC; pool: 2x2 max pool."""
    out: Transition | None = None
    """Output channels; not for ``pool``, which keeps them."""


class MergeUpRow(Row):
    """Top-down merge of [lateral, upper]: 1x1 on both, the upper one doubled in size, concatenated."""

    num_inputs: ClassVar[int | None] = 2
    block: Literal["merge_up"]
    out: Transition
    """Channels of each of the two 1x1 convolutions; twice as many come out."""


class UpConcatRow(Row):
    """Doubles the size of the first input and concatenates the second as it is."""

    num_inputs: ClassVar[int | None] = 2
    block: Literal["up_concat"]


class MergeDownRow(Row):
    """Bottom-up merge of [below, beside]: the first is down-sampled and concatenated with the second."""

    num_inputs: ClassVar[int | None] = 2
    block: Literal["merge_down"]
    method: DownSampling
    """As in ``down``."""
    out: Transition
    """Channels of the down-sampled part."""


def _growing(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(size % 2 == 0 for size in sizes) or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"pool sides must be odd and grow, not {list(sizes)}")
    return sizes


PYRAMID = (5, 9, 13)
PoolSides = Annotated[tuple[Annotated[int, Field(ge=3, le=1025)], ...], Field(min_length=1), AfterValidator(_growing)]


class SppcspcRow(Row):
    """Spatial pyramid pooling inside a cross-stage partial block."""

    block: Literal["sppcspc"]
    out: Transition
    """Channels inside and out."""
    pools: PoolSides = Field(default=PYRAMID, exclude_if=lambda sides: sides == PYRAMID)
    """Sides of the max pools in pixels, odd and growing; left out of documents, and of a table's digest, where they are
    5, 9 and 13."""


class SppTinyRow(Row):
    """The small cross-stage partial pyramid pooling of yolov7-tiny."""

    block: Literal["spp_tiny"]
    out: Transition
    """Channels inside and out."""


class SppRow(Row):
    """1x1 to half the channels, max pools of 5, 9 and 13 beside it, concatenated, 1x1."""

    block: Literal["spp"]
    out: Transition
    """Output channels."""


class PoolsRow(Row):
    """Max pools of the input (stride 1), concatenated largest first, then the input itself."""

    block: Literal["pools"]
    sizes: PoolSides
    """Sides of the pools in pixels, odd and growing."""


class DarkRow(Row):
    """Dark blocks (1x1 then 3x3, added to the input) one after the other."""

    block: Literal["dark"]
    out: Transition
    """Output channels."""
    stack: Stack = 1
    """Number of blocks."""
    shortcut: bool = True
    """Whether the input is added."""
    rep: tuple[str, ...] = ()
    """Positions of RepConv."""
    reverse: bool = False
    """3x3 before 1x1 (paper Figure 7)."""


class CspRow(Row):
    """Cross-stage partial block around a stack of residual blocks."""

    block: Literal["csp"]
    form: Literal["a", "b", "c", "darknet"]
    """Published forms CSPA, CSPB, CSPC, and the first stage form of YOLOv4 (``darknet``)."""
    out: Transition
    """Output channels."""
    hidden: Transition | None = None
    """Channels of both paths; ``out`` in form b and half of it in the others unless given."""
    stack: Stack
    """Number of residual blocks."""
    residual: Literal["dark", "res", "resx"] = "dark"
    """dark: 1x1, 3x3; res: 1x1, 3x3, 1x1 at half the width; resx: the same at full width in 32 groups."""
    narrow: bool = False
    """Halve the width inside the residual blocks (dark only)."""
    shortcut: bool = True
    """Whether the residual blocks add their input."""
    rep: tuple[str, ...] = ()
    """Positions of RepConv."""
    reverse: bool = False
    """3x3 before 1x1 in the residual blocks (paper Figure 7)."""


class OsaRow(Row):
    """Partial one-shot aggregation of YOLOv4-tiny; its tap ``partial`` is the aggregated half."""

    block: Literal["osa"]
    hidden: Transition
    """Channels of the first convolution; twice as many come out."""


class ResStemRow(Row):
    """Stem of r50-csp: stride 4 by a strided convolution, then a strided one beside a max pool."""

    block: Literal["res_stem"]
    out: Transition
    """Output channels."""


def row_kind(row: type[Row]) -> str:
    """Return the name of a kind of row: the one value of its field ``block``."""
    return str(get_args(row.model_fields["block"].annotation)[0])


ROWS: ExtensionPoint[type[Row]] = ExtensionPoint("block")
"""The class of each kind of row; `yolofleet.models.blocks.register_block` adds one."""

_BuiltIn = (
    Annotated[ReorgRow, Tag("reorg")]
    | Annotated[ConvRow, Tag("conv")]
    | Annotated[AlternateRow, Tag("alternate")]
    | Annotated[ElanRow, Tag("elan")]
    | Annotated[DownRow, Tag("down")]
    | Annotated[MergeUpRow, Tag("merge_up")]
    | Annotated[UpConcatRow, Tag("up_concat")]
    | Annotated[MergeDownRow, Tag("merge_down")]
    | Annotated[SppcspcRow, Tag("sppcspc")]
    | Annotated[SppTinyRow, Tag("spp_tiny")]
    | Annotated[SppRow, Tag("spp")]
    | Annotated[PoolsRow, Tag("pools")]
    | Annotated[DarkRow, Tag("dark")]
    | Annotated[CspRow, Tag("csp")]
    | Annotated[OsaRow, Tag("osa")]
    | Annotated[ResStemRow, Tag("res_stem")]
)
for _member in get_args(_BuiltIn):
    _row = get_args(_member)[0]
    ROWS.register(row_kind(_row))(_row)
_BUILT_IN_KINDS = frozenset(ROWS.built_in())


def _tag(row: Any) -> str:
    kind = row.get("block") if isinstance(row, dict) else getattr(row, "block", None)
    return kind if isinstance(kind, str) and kind in _BUILT_IN_KINDS else "registered"


def _read_registered(row: Any) -> Row:
    """Read a row of a kind that a plugin registered; a row of an unknown kind is refused."""
    if isinstance(row, Row):
        return row
    kind = str(row.get("block")) if isinstance(row, dict) else ""
    try:
        return ROWS.get(kind).model_validate(row)
    except UserError as error:
        raise ValueError(str(error)) from None


BlockRow = Annotated[
    _BuiltIn | Annotated[SerializeAsAny[Row], PlainValidator(_read_registered), Tag("registered")], Discriminator(_tag)
]
