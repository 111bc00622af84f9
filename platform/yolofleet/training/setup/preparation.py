"""What a fresh run decides once, before its first step, and keeps in its directory for every later start.

initial/anchors.json               the anchors, and how they fit the boxes of the training set
initial/model.safetensors          the tensors taken over from trained weights (`initial_weights`)
initial/image_weights.safetensors  how often each sample is drawn (`image_weights`)
initial/order.json                 the order of samples: how shards are dealt to lanes (`data.deal`)

Anchors are measured against the boxes of the training set, and new ones are fitted where the job says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import Field

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.anchors import (
    GOOD_RECALL,
    AnchorFit,
    Anchors,
    Sizes,
    anchor_fit,
    fit_anchors,
    image_weights,
    large_enough,
    survey_boxes,
)
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.order import Deal
from yolofleet.models.tensor_file import MOST_HEADER_BYTES, TensorFileError, parse_tensors
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelTable
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.tracking.run_documents import Document, read_document
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.setup.builders import check_block_names, chosen_deal, trained_table

if TYPE_CHECKING:
    from yolofleet.training.setup.pretrained import Locate

Setting = Literal["model", "auto", "fit"]
Source = Literal["model", "initial weights", "fitted"]


@dataclass(frozen=True)
class AnchorReport:
    """How anchors were chosen."""

    setting: Setting
    """What the job asked for."""
    source: Source
    """Where the anchors in use come from."""
    image_size: int
    """Side of the network's input in pixels that boxes were measured at."""
    ratio_limit: float
    """Largest ratio between a box's and an anchor's sides (``anchor_t``)."""
    num_boxes: int
    """Boxes that were measured."""
    before: AnchorFit
    """How the given anchors fit them."""
    after: AnchorFit
    """How the anchors in use fit them."""
    anchors: Anchors
    """The anchors in use."""

    def as_document(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """Return in one line how the anchors fit the data, and the cure where they do not."""
        reach = (
            f"anchors: those of the {self.source} reach" if self.source != "fitted" else "anchors: fitted ones reach"
        )
        text = f"{reach} {self.after.recall:.1%} of {plural(self.num_boxes, 'box')} at {self.image_size} px"
        if self.source == "fitted":
            few = len(self.anchors) * len(self.anchors[0])
            equal = f" (fewer boxes than the {few} anchors: some are the same)" if self.num_boxes < few else ""
            return f"{text}, those of the model {self.before.recall:.1%}{equal}"
        if self.after.recall >= GOOD_RECALL or not self.num_boxes:
            return text
        if self.setting == "model":
            cure = f"boxes out of reach are never learned; set anchors=auto to fit anchors below {GOOD_RECALL:.0%}"
        else:
            cure = "fitting does not help; a larger data.image_size or hyperparameters.anchor_t may"
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
        seed: Seed of the fitting.
        source: Where the given anchors come from.

    Raises:
        UserError: ``fit`` is asked for, and no box is large enough to fit anchors to.
    """
    before = anchor_fit(sizes, given, ratio_limit)
    wanted = setting == "fit" or (setting == "auto" and before.recall < GOOD_RECALL and bool(large_enough(sizes).any()))
    chosen, after = given, before
    if wanted and len(sizes):
        fitted = fit_anchors(sizes, len(given), len(given[0]), ratio_limit, seed)
        fit = anchor_fit(sizes, fitted, ratio_limit)
        if setting == "fit" or fit.recall > before.recall:
            chosen, after, source = fitted, fit, "fitted"
    return AnchorReport(setting, source, image_size, ratio_limit, len(sizes), before, after, chosen)


def table_anchors(table: ModelTable) -> Anchors:
    """Return a table's anchors as widths and heights by level."""
    return tuple(tuple(zip(level[::2], level[1::2], strict=True)) for level in table.anchors)


def with_anchors(table: ModelTable, anchors: Anchors) -> ModelTable:
    """Return a table with other anchors: whatever is built from it carries them."""
    rows = tuple(tuple(side for anchor in level for side in anchor) for level in anchors)
    return table.model_copy(update={"anchors": rows})


ANCHORS_KEY = "initial/anchors.json"
IMAGE_WEIGHTS_KEY = "initial/image_weights.safetensors"
ORDER_KEY = "initial/order.json"
CURE = "start a run of another name"
MOST_SAMPLES_SURVEYED = 5000
"""Annotations read to measure anchors: some 35,000 boxes of COCO."""


class KeptAnchors(Document):
    """``initial/anchors.json``, as far as it is read again."""

    anchors: list[list[Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=2, max_length=2)]]]


class KeptOrder(Document):
    """``initial/order.json``."""

    deal: Deal


@dataclass(frozen=True)
class Preparation:
    """What a fresh run will start with, before it is written."""

    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts to record for the run."""
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Objects for its directory by key, in the order of writing."""

    def keep(self, run: RunDirectory) -> None:
        """Write it into the run directory, the order last: it is the sign that everything is there."""
        if self.facts:
            run.record_facts(**self.facts)
        for key, data in self.objects.items():
            run.storage.put(key, data)


def prepare(
    job: JobSpec, run: RunDirectory, dataset: ShardDataset, done_steps: int, locate: Locate | None = None
) -> Preparation:
    """Decide what a fresh run starts with; returns an empty preparation for a run that has started before.

    Args:
        job: What will be trained.
        run: Its run directory, which is only read.
        dataset: The training set.
        done_steps: Steps of the run's newest checkpoint.
        locate: Finds registered versions for ``initial_weights``.

    Raises:
        UserError: A block to freeze does not exist, the initial weights cannot be used, or an earlier version began the
            run with another order of samples.
    """
    table = trained_table(job)
    check_block_names(table, job.freeze)
    if run.storage.exists(ORDER_KEY):
        return Preparation()
    if done_steps:
        raise UserError(
            f"{run.url}: was started with the sample order of an earlier version, which this version cannot "
            f"continue. Start a run of another name from its weights: name={job.name}-2 initial_weights={run.url}"
        )
    notes: list[str] = []
    facts: dict[str, Any] = {}
    objects: dict[str, bytes] = {}
    given = None
    if job.initial_weights is not None:
        from yolofleet.training.setup.pretrained import INITIAL_KEY, read_trained, take_over

        trained = read_trained(job.initial_weights, locate, job.initial_weights_sha256)
        transfer = take_over(table, [name for _, name in dataset.classes], trained)
        objects[INITIAL_KEY] = transfer.to_bytes()
        facts["initial_weights"] = transfer.facts()
        notes += transfer.sentences()
        given = transfer.anchors
    recipe = job.resolved_hyperparameters()
    survey = survey_boxes(dataset, None if recipe.image_weights > 0 else MOST_SAMPLES_SURVEYED)
    if recipe.image_weights > 0:
        weights = image_weights(survey, len(dataset.classes), recipe.image_weights)
        objects[IMAGE_WEIGHTS_KEY] = safetensors.numpy.save({"weights": weights})
        notes.append(f"image weights: an image is drawn {weights.min():.2f} to {weights.max():.2f} times an epoch")
    report = choose_anchors(
        job.anchors,
        given or table_anchors(table),
        survey.sizes * job.data.image_size,
        image_size=job.data.image_size,
        ratio_limit=recipe.anchor_t,
        seed=job.seed,
        source="model" if given is None else "initial weights",
    )
    notes.append(report.sentence())
    facts["anchors"] = {"source": report.source, "recall": report.after.recall, "model_recall": report.before.recall}
    objects[ANCHORS_KEY] = json.dumps(report.as_document(), indent=1).encode() + b"\n"
    objects[ORDER_KEY] = json.dumps({"format": 1, "order": "lanes", "deal": chosen_deal(job.data, dataset)}).encode()
    schedule = Schedule(recipe, job.num_steps(len(dataset)), len(dataset) / job.global_batch_size)
    if job.initial_weights is None and schedule.recipe_warmup_steps > schedule.num_steps // 2:
        notes.append(
            f"few steps: {plural(len(dataset), 'image')} x {plural(job.epochs, 'epoch', form='g')} in batches of "
            f"{job.global_batch_size} give {plural(schedule.num_steps, 'step')}, and the recipe takes "
            f"{schedule.recipe_warmup_steps:,} for the warm-up alone. From scratch, a model learns little in so few: "
            "raise epochs, or lower global_batch_size"
        )
    return Preparation(tuple(notes), facts, objects)


def run_table(job: JobSpec, run: RunDirectory) -> ModelTable:
    """Return the table of the run's model, with the anchors that it trains with.

    A run from before anchors were recorded has those of its model.
    """
    table = trained_table(job)
    document = read_document(run.storage, ANCHORS_KEY, KeptAnchors, CURE)
    if document is None:
        return table
    kept = with_anchors(table, tuple(tuple((w, h) for w, h in level) for level in document["anchors"]))
    if [*map(len, kept.anchors)] != [*map(len, table.anchors)]:
        raise UserError(f"{run.url}/{ANCHORS_KEY}: holds anchors of another model; {CURE}")
    return kept


def run_deal(run: RunDirectory) -> Deal:
    """Return how the run deals its shards to lanes, as it decided at its start.

    Raises:
        UserError: The document is missing or damaged.
    """
    document = read_document(run.storage, ORDER_KEY, KeptOrder, CURE)
    if document is None:
        raise UserError(f"{run.url}/{ORDER_KEY}: is missing; {CURE}")
    deal: Deal = document["deal"]
    return deal


def run_image_weights(run: RunDirectory, num_samples: int) -> NDArray[np.float64]:
    """Return how often each sample is drawn an epoch, as the run decided at its start.

    Raises:
        UserError: The file is damaged, or of another dataset.
    """
    where = f"{run.url}/{IMAGE_WEIGHTS_KEY}"
    try:
        weights = parse_tensors(run.storage.get_at_most(IMAGE_WEIGHTS_KEY, 8 * num_samples + MOST_HEADER_BYTES))
    except TensorFileError as error:
        raise UserError(f"{where}: {error}; {CURE}") from error
    found = weights.get("weights")
    if found is None or found.shape != (num_samples,) or not (found.isfinite() & (found >= 0)).all():
        raise UserError(f"{where}: does not hold weights from 0 on for {plural(num_samples, 'sample')}; {CURE}")
    return found.double().numpy()
