"""The job spec: everything that decides a training run, checked before anything starts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS
from yolofleet.core.registered_names import registered_uri
from yolofleet.core.text import plural
from yolofleet.specs.assignment import AssignmentSpec
from yolofleet.specs.base import Count, Spec, Url, absolute_url
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.data import DataSpec
from yolofleet.specs.hyperparameters import HyperparameterOverrides, Hyperparameters, RecipeName, merged
from yolofleet.specs.model import ModelChoice
from yolofleet.specs.stop import StopSpec
from yolofleet.specs.tracking import NotifySpec, TrackingSpec

JOB_FORMAT = 1

# May change between two starts of one run: how it is executed and tracked, and where its data is stored. The contents
# of the data and of the model's table are compared by their digests.
EXECUTION_KEYS = (
    "cluster",
    "strategy",
    "compile",
    "storage",
    "checkpoint",
    "tracking",
    "log_every_steps",
    "record_samples",
    "release_onnx",
    "release_precision",
    "most_non_finite_steps",
    "notify",
    "stop",
    "memory",
)
EXECUTION_DATA_KEYS = (
    *("train", "val", "cache", "fetchers", "loader", "loader_threads", "most_skipped_share", "augment_on"),
)
# Settings that were added after the first runs: at their default they are no part of the identity, so that those runs
# can be resumed.
LATER_KEYS = ("assignment", "anchors", "freeze", "batch_norm_workers")
LATER_DATA_KEYS = ("max_pixels", "deal")
LATER_EVALUATION_KEYS = ("protocol",)


class CheckpointSpec(Spec):
    """How often the state is saved, and how much of it is kept."""

    every_steps: Count = 500
    """The most steps that any failure costs. Checkpoints are taken twice as often: one is stored before the next."""
    keep: Count = 3
    """Checkpoints kept; the best and the newest are always among them."""

    @property
    def period_steps(self) -> int:
        """Steps between two checkpoints."""
        return max(1, self.every_steps // 2)


class EvaluationSpec(Spec):
    """How the model is evaluated on the validation set."""

    protocol: Literal["square", "published"] = "square"
    """square: every image is padded to a square, in float32. published: batches of images of similar shape, padded only
    as far as needed (rectangular), in half precision on a GPU, with the published thresholds, as the paper's AP was
    measured."""
    every_epochs: Annotated[float, Field(ge=1e-6)] = 1.0
    """Epochs between two evaluations; the last step is always evaluated."""
    batch_size: Count = 32
    """Images that pass through the network together."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = EVALUATION_CONFIDENCE
    """Detections below this score are dropped (the published evaluation's value)."""
    iou: Annotated[float, Field(gt=0, lt=1)] = EVALUATION_IOU
    """IoU above which NMS drops the lower-scored of two boxes of a class."""
    max_detections: Count = EVALUATION_MAX_DETECTIONS
    """Detections kept per image."""

    @model_validator(mode="after")
    def _published(self) -> Self:
        for key in ("confidence", "iou", "max_detections"):
            fixed = type(self).model_fields[key].default
            if self.protocol == "published" and getattr(self, key) != fixed:
                raise ValueError(
                    f"protocol published fixes {key} at {fixed}, not {getattr(self, key)}; leave {key} out, or use "
                    "protocol square"
                )
        return self


class JobSpec(Spec):
    """A training run."""

    format: Annotated[int, Field(ge=1)] = JOB_FORMAT
    """Version of this file format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of the run: letters, digits, '.', '_' and '-'. The same name resumes the same run."""
    model: ModelChoice
    """The model, and how it is scaled."""
    data: DataSpec
    recipe: RecipeName = "p5"
    """Published hyper-parameters to start from: p5, p6, tiny, or custom for fine-tuning."""
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters that differ from the recipe's."""
    assignment: AssignmentSpec = AssignmentSpec()
    """How boxes are assigned to the cells that learn them."""
    anchors: Literal["model", "auto", "fit"] = "model"
    """model: the model's own anchors; auto: fitted to the boxes if those reach too few of them; fit: always fitted."""
    initial_weights: Url | None = None
    """Weights to start from: a run directory, a detector package, a registered version (NAME@ALIAS or NAME/VERSION), or
    a .pt, .pth, .ckpt or .safetensors file, also at https://; the classes may differ. Random weights unless given."""
    initial_weights_sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of that file, which is read only if it has this digest; needed for https://."""
    freeze: tuple[str, ...] = ()
    """Blocks of the model that do not learn, by their names (``yolofleet models show NAME`` lists them)."""
    most_non_finite_steps: Count = 10
    """Steps in a row with a non-finite loss or gradient, before the run stops."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] = 300.0
    """Passes over the training set; of a finished run they can be raised, and it trains on."""
    stop: StopSpec | None = None
    """When the run ends before its last epoch."""
    global_batch_size: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Samples of one optimiser step, over all workers."""
    micro_batch_size: Count | Literal["auto"] = 16
    """Samples that pass the network together; the global batch is a whole number of them. auto: the most that fit into
    the memory of a worker, found at the run's start by the memory forecast and a training step, and kept."""
    batch_norm_workers: Count = 1
    """Workers whose micro-batches are normalised together (SyncBN); 1 normalises each micro-batch by itself. It decides
    what is computed; the number of workers, a multiple of it, does not."""
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass."""
    memory: Literal["fast", "balanced", "small"] = "fast"
    """What a forward pass keeps for the backward pass: all (fast), half of what blocks keep inside (balanced), or the
    blocks' inputs alone (small). The rest is computed again, at most one more forward pass, to the same gradient."""
    strategy: Literal["ddp", "zero1", "zero2"] = "ddp"
    """State on each worker: all of it (ddp), a share of the moments (zero1), of the gradients too (zero2)."""
    compile: Literal["off", "model", "full"] = "off"
    """model: torch compiles the network in the first step, which takes minutes; later ones may be faster on a GPU.
    full: the loss too, once for each of up to six sizes of its tables. Both take memory fast; a run that was out of
    memory is no longer compiled."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the sample order, the augmentation and the initial weights."""
    log_every_steps: Count = 10
    """Steps between two rows of metrics."""
    record_samples: bool = False
    """Write the digest of every micro-batch that the network saw to the run directory, as proof of the order."""
    release_onnx: bool = False
    """Put the network as ONNX into the released package, which then predicts faster on CPUs
    (needs the extra `export`)."""
    release_precision: Literal["fp32", "fp16"] = "fp32"
    """fp16: round the released weights, whose file is then half as large; the proof says what that costs in AP."""
    cluster: ClusterSpec = ClusterSpec()
    storage: Url = "runs"
    """Folder or s3:// URL that holds the run directory."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    tracking: TrackingSpec = TrackingSpec()
    notify: NotifySpec | None = None
    """Who is notified when the run ends, fails or waits long."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format > JOB_FORMAT:
            raise ValueError(f"format {self.format} is newer than this version reads ({JOB_FORMAT}); upgrade yolofleet")
        if self.tracking.register_as is not None and self.tracking.uri is None and self.storage.startswith("s3://"):
            raise ValueError(
                f"tracking.register_as is {self.tracking.register_as}, but runs at {self.storage} have no "
                "registry beside them; set tracking.uri=http://HOST:5000 (an MLflow server), or "
                "tracking.register_as=null"
            )
        if self.strategy != "ddp" and self.precision not in ("fp32", "bf16"):
            raise ValueError(f"strategy {self.strategy} computes in fp32 or bf16; use precision bf16, or strategy ddp")
        if self.compile != "off" and (self.strategy, self.batch_norm_workers, self.memory) != ("ddp", 1, "fast"):
            raise ValueError(
                f"compile {self.compile} takes strategy ddp, batch_norm_workers 1 and memory fast; they are "
                f"{self.strategy}, {self.batch_norm_workers} and {self.memory}; use compile off, or change them"
            )
        if self.compile == "full" and self.resolved_hyperparameters().multi_scale > 0:
            raise ValueError("compile full takes one image size, and multi_scale is above 0; use compile model")
        return self

    @model_validator(mode="after")
    def _divides_the_batch(self) -> Self:
        if self.micro_batch_size == "auto":  # all this is checked of the number, once it is known
            return self
        if self.global_batch_size % self.micro_batch_size:
            low = self.global_batch_size // self.micro_batch_size * self.micro_batch_size
            nearest = [str(size) for size in (low, low + self.micro_batch_size) if size]
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}; use {' or '.join(nearest)}"
            )
        held = plural(self.num_micro_batches, "micro-batch")
        if self.cluster.most_workers > self.num_micro_batches:
            raise ValueError(
                f"cluster.workers asks for {plural(self.cluster.most_workers, 'worker')}, but a global batch of "
                f"{self.global_batch_size} holds only {held} of {self.micro_batch_size}; use fewer workers or a "
                "smaller micro_batch_size"
            )
        if self.num_micro_batches % self.batch_norm_workers:
            raise ValueError(f"batch_norm_workers is {self.batch_norm_workers}, no divisor of {held} of a global batch")
        self.check_teams(self.cluster.worker_counts)
        uneven = (number for number in self.cluster.worker_counts if self.num_micro_batches % number)
        if self.strategy == "zero2" and (first := next(uneven, None)) is not None:
            raise ValueError(
                f"strategy zero2 exchanges gradients after every micro-batch, so workers need equal shares: {held} "
                f"cannot be shared by {first} workers; use strategy zero1"
            )
        return self

    @model_validator(mode="after")
    def _traceable(self) -> Self:
        weights, digest = self.initial_weights, self.initial_weights_sha256
        if weights is None and digest is not None:
            raise ValueError("initial_weights_sha256 is of a file, and there is none; set initial_weights")
        if weights is not None and weights.lower().startswith("http://"):
            raise ValueError(f"initial_weights {weights}: files are only fetched from https://")
        if weights is not None and weights.lower().startswith("https://") and digest is None:
            raise ValueError(
                f"initial_weights {weights}: the file behind an address can change; give "
                f"initial_weights_sha256=DIGEST, from its publisher, or from 'sha256sum FILE' of a copy that you trust"
            )
        return self

    @field_validator("hyperparameters")
    @classmethod
    def _known(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        try:
            HyperparameterOverrides.parse(overrides, source="")
        except UserError as error:
            raise ValueError(str(error).splitlines()[0].removeprefix(": ")) from None
        return overrides

    def with_absolute_paths(self) -> JobSpec:
        """Return the job with local paths absolute and names of versions as ``models:/NAME``, for other folders."""
        data = self.data.model_copy(update={"train": absolute_url(self.data.train), "val": absolute_url(self.data.val)})
        if data.cache is not None:
            cache = data.cache.model_copy(update={"path": absolute_url(data.cache.path)})
            data = data.model_copy(update={"cache": cache})
        model = self.model
        if model.spec is not None:
            model = model.model_copy(update={"spec": absolute_url(model.spec)})
        weights = self.initial_weights and (registered_uri(self.initial_weights) or absolute_url(self.initial_weights))
        return self.model_copy(
            update={"data": data, "model": model, "storage": absolute_url(self.storage), "initial_weights": weights}
        )

    def check_teams(self, worker_counts: Iterable[int]) -> None:
        """Refuse numbers of workers that cannot form whole teams for batch norm.

        Raises:
            ValueError: Names the first of them.
        """
        odd = next((number for number in worker_counts if number % self.batch_norm_workers), None)
        if odd is not None:
            raise ValueError(
                f"batch_norm_workers is {self.batch_norm_workers}, no divisor of {plural(odd, 'worker')}; use a fixed "
                f"multiple of it (cluster.workers: {self.batch_norm_workers}), or batch_norm_workers: 1"
            )

    @property
    def resolved_micro_batch_size(self) -> int:
        """Samples that pass the network together.

        Raises:
            UserError: It is ``auto``, and the run has not decided yet.
        """
        if self.micro_batch_size == "auto":
            raise UserError(
                "micro_batch_size is auto, which 'yolofleet train' decides where the run starts; here it needs a "
                "number: micro_batch_size=N"
            )
        return self.micro_batch_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one global batch."""
        return self.global_batch_size // self.resolved_micro_batch_size

    def resolved_hyperparameters(self) -> Hyperparameters:
        """Return the recipe with this job's overrides."""
        return merged(self.recipe, self.hyperparameters)

    def num_steps(self, num_samples: int) -> int:
        """Return the steps of the whole run over a training set of ``num_samples``."""
        return max(1, math.ceil(self.epochs * num_samples / self.global_batch_size))

    def computation(self) -> dict[str, Any]:
        """Return the part that decides what is computed: two starts of one run must agree in it."""
        document = {key: value for key, value in self.document().items() if key not in EXECUTION_KEYS}
        document["data"] = {key: value for key, value in document["data"].items() if key not in EXECUTION_DATA_KEYS}
        document["model"].pop("spec", None)
        if self.initial_weights is not None:
            document["initial_weights"] = True  # their content is recorded in the run; their path may change
            document.pop("initial_weights_sha256", None)
        document["strategy"] = "ddp"  # was once part of it; all strategies compute the same
        later: tuple[tuple[Spec, dict[str, Any], tuple[str, ...]], ...] = (
            (self, document, LATER_KEYS),
            (self.data, document["data"], LATER_DATA_KEYS),
            (self.evaluation, document["evaluation"], LATER_EVALUATION_KEYS),
        )
        for spec, part, keys in later:
            for key in keys:
                if getattr(spec, key) == type(spec).model_fields[key].default:
                    part.pop(key, None)
        return document

    def digest(self) -> str:
        """Return the sha256 of `computation`, which names the run's identity."""
        text = json.dumps(self.computation(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
