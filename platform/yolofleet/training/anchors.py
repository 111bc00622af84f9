"""Which anchors a run trains with: measured against the boxes of its training set, and fitted anew where it says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from yolofleet.data.anchors import GOOD_RECALL, AnchorFit, Anchors, Sizes, anchor_fit, fitted_anchors, large_enough
from yolofleet.specs.model import ModelTable

Setting = Literal["model", "auto", "fit"]
Source = Literal["model", "initial weights", "fitted"]


@dataclass(frozen=True)
class AnchorReport:
    """How anchors were chosen.

    Attributes:
        setting: What the job asked for.
        source: Where the anchors in use come from.
        image_size: Side of the network's input in pixels that boxes were measured at.
        ratio_limit: Largest ratio between a box's and an anchor's sides (``anchor_t``).
        num_boxes: Boxes that were measured.
        before: How the given anchors suit them.
        after: How the anchors in use suit them.
        anchors: The anchors in use.
    """

    setting: Setting
    source: Source
    image_size: int
    ratio_limit: float
    num_boxes: int
    before: AnchorFit
    after: AnchorFit
    anchors: Anchors

    def as_document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """Say in one line how the anchors suit the data, and what can be done where they do not."""
        reach = (
            f"anchors: those of the {self.source} reach" if self.source != "fitted" else "anchors: fitted ones reach"
        )
        text = f"{reach} {self.after.recall:.1%} of {self.num_boxes} boxes at {self.image_size} px"
        if self.source == "fitted":
            few = len(self.anchors) * len(self.anchors[0])
            equal = f" (fewer boxes than the {few} anchors: some are alike)" if self.num_boxes < few else ""
            return f"{text}, those of the model {self.before.recall:.1%}{equal}"
        if self.after.recall >= GOOD_RECALL or not self.num_boxes:
            return text
        if self.setting == "model":
            cure = f"boxes out of reach are never learned; set anchors=auto to fit anchors below {GOOD_RECALL:.0%}"
        else:
            cure = "fitting gains nothing; a larger data.image_size or hyperparameters.anchor_t may help"
        return f"{text} ({cure})"


def choose_anchors(
    setting: Setting,
    given: Anchors,
    sizes: Sizes,
    *,
    image_size: int,
    ratio_limit: float,
    seed: int,
    source: Source = "model",
) -> AnchorReport:
    """Measure the given anchors, and fit new ones if the setting asks for it and they reach more boxes.

    Args:
        setting: ``model`` keeps those given; ``auto`` fits below a recall of 0.98, as published, and keeps what fits
            better; ``fit`` fits always.
        given: Anchors of the model, or of the weights it starts from.
        sizes: (n, 2) boxes in pixels at the image size.
        image_size: Side of the network's input in pixels.
        ratio_limit: ``anchor_t``.
        seed: Decides the course of the fitting.
        source: Where the given anchors come from.

    Raises:
        UserError: ``fit`` is asked for, and no box is large enough to fit anchors to.
    """
    before = anchor_fit(sizes, given, ratio_limit)
    wanted = setting == "fit" or (setting == "auto" and before.recall < GOOD_RECALL and bool(large_enough(sizes).any()))
    used, after = given, before
    if wanted and len(sizes):
        fitted = fitted_anchors(sizes, len(given), len(given[0]), ratio_limit, seed)
        found = anchor_fit(sizes, fitted, ratio_limit)
        if setting == "fit" or found.recall > before.recall:
            used, after, source = fitted, found, "fitted"
    return AnchorReport(setting, source, image_size, ratio_limit, len(sizes), before, after, used)


def table_anchors(table: ModelTable) -> Anchors:
    """Return a table's anchors as widths and heights by level."""
    return tuple(tuple(zip(level[::2], level[1::2], strict=True)) for level in table.anchors)


def with_anchors(table: ModelTable, anchors: Anchors) -> ModelTable:
    """Return a table with other anchors: whatever is built from it carries them."""
    rows = tuple(tuple(side for anchor in level for side in anchor) for level in anchors)
    return table.model_copy(update={"anchors": rows})
