"""The JSON documents of a run directory: what each must hold, read by one function.

Anybody may have written them, so a document is bounded in size, and every value that is computed with has its type.
What else a document holds is left as it is.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

import pydantic
from pydantic import ConfigDict, Field, model_validator

from yolofleet.core.errors import UserError
from yolofleet.core.text import one_line
from yolofleet.evaluation.error_types import ERROR_MEANINGS
from yolofleet.storage import ObjectNotFoundError, Storage

MOST_DOCUMENT_BYTES = 32 << 20
MOST_CLASSES = 100_000
Count = Annotated[int, Field(ge=0, lt=2**63)]
Coordinate = Annotated[float, Field(ge=-1e100, le=1e100)]
"""On an axis that can be computed."""
Pair = Annotated[list[Annotated[float, Field(ge=0, le=1e15)]], Field(min_length=2, max_length=2)]
Objects = dict[str, Any]


class Document(pydantic.BaseModel):
    """A JSON object; keys without a type here may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Identity(Document):
    """``run.json``."""

    format: Count
    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")


class Facts(Document):
    """``facts.json``."""

    anchors: Objects = {}
    contents: Objects = {}
    data: Objects | list[Any] | None = None
    data_url: Objects = {}
    earlier_epochs: list[Pair] = []
    environment: Objects = {}
    evaluation: Objects = {}
    figures: dict[str, float | None] = {}
    initial_weights: Objects = {}
    num_classes: Annotated[int, Field(ge=0, le=MOST_CLASSES)] | None = None
    skipped_windows: list[Pair] = []
    started: Objects = {}


class SkippedReason(Document):
    """The samples that were skipped for one reason."""

    count: Count
    samples: Count
    keys: dict[str, Count]


class SkippedReport(Document):
    """``report/skipped.json``."""

    skipped: Count
    seen: Count
    share: float
    reasons: dict[str, SkippedReason]


class ReleaseRecord(Document):
    """``report/release.json``, as far as a page shows it."""

    model: str | None = None
    mlflow: str | None = None
    figures: dict[str, float | None] = {}
    skipped: dict[str, SkippedReport] = {}


class Names(pydantic.RootModel[dict[str, str]]):
    """The names of images, by those of the drawings."""


class ClassFigures(Document):
    """What was measured of one class."""

    category_id: int
    name: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    num_objects: Count
    num_detections: Count
    best_f1: float | None
    best_confidence: float | None


class StoredEvaluation(Document):
    """``report/evaluation.json``, see `EvaluationResult.page_document`."""

    figures: dict[str, float | None]
    per_class: list[ClassFigures]
    curves: dict[str, list[float]]
    max_detections: Count
    skipped: list[Any]
    num_images: Count
    num_objects: Count
    num_crowds: Count
    num_detections: Count

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        recall = f"AR_{self.max_detections}"
        if lacking := [name for name in ("AP", "AP50", "AP75", recall) if name not in self.figures]:
            raise ValueError(f"figures has no {', '.join(lacking)}")
        if self.figures["AP"] is not None and self.figures["AP50"] is None:
            raise ValueError("figures has an AP without an AP50")
        for entry in self.per_class:
            value = (entry.model_extra or {}).get(recall.lower(), "nothing")
            if not isinstance(value, float | int | None):
                raise ValueError(f"per_class: {recall.lower()} is {value}")
        if len({*map(len, self.curves.values())} - {0}) > 1 or any(len(curve) == 1 for curve in self.curves.values()):
            raise ValueError("curves have different lengths, or one point")
        return self


class KindOfError(Document):
    """How often one kind of error was made."""

    kind: str
    count: Count
    count_above: Count
    cost: float | None


class ClassErrors(Document):
    """What goes wrong with one class."""

    name: str
    main_error: str | None
    costs: dict[str, float]
    ap50: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    threshold: float | None


class Confused(Document):
    """A cell of the confusion matrix."""

    object: str
    detection: str
    count: Count


class ErrorCurves(Document):
    """Figures over the confidence."""

    thresholds: list[Coordinate | None] = Field(min_length=1)
    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]


class StoredCalibration(Document):
    """How often boxes of a confidence are right."""

    error: float
    confidence: list[float | None]
    precision: list[float | None]


class StoredSlice(Document):
    """Figures of a part of the data."""

    name: str
    num_images: Count
    num_objects: Count
    num_false: Count
    ap: float | None
    ap50: float | None
    recall: float | None
    precision: float | None


class DoubtedLabel(Document):
    """A label that may be wrong."""

    image: str = ""
    image_id: int | str
    text: str
    label: list[float] | None
    detection: list[float]
    score: float


class GalleryImage(Document):
    """An image of a gallery."""

    reason: str
    drawing: str


class StoredGallery(Document):
    """Images of one kind."""

    name: str
    images: list[GalleryImage]


class DiagnosisDetails(Document):
    """What `Diagnosis.as_json` holds."""

    summary: str
    threshold: float | None
    num_true: Count
    num_false: Count
    num_not_found: Count
    errors: list[KindOfError]
    classes: list[ClassErrors]
    class_names: list[str]
    confusion: list[Confused]
    curves: ErrorCurves
    calibration: StoredCalibration | None
    sizes: list[StoredSlice]
    shapes: list[StoredSlice]
    object_counts: list[StoredSlice]
    label_errors: list[DoubtedLabel]
    galleries: list[StoredGallery]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = {*self.class_names, "background"}
        if any(cell.object not in names or cell.detection not in names for cell in self.confusion):
            raise ValueError("confusion names another class than class_names")
        if any(entry.kind not in ERROR_MEANINGS for entry in self.errors):
            raise ValueError("errors has an unknown kind")
        known = {None, *ERROR_MEANINGS}
        if any(entry.main_error not in known or entry.main_error not in {None, *entry.costs} for entry in self.classes):
            raise ValueError("classes has an unknown main_error")
        curves, found = self.curves, self.calibration
        lengths = {len(curves.thresholds), len(curves.precision), len(curves.recall), len(curves.f1)}
        if len(lengths) > 1 or (found is not None and len(found.confidence) != len(found.precision)):
            raise ValueError("curves have different lengths")
        if curves.thresholds[0] is None or curves.thresholds[-1] is None:
            raise ValueError("curves.thresholds has no ends")
        return self


class OlderDiagnosis(Document):
    """One without ``num_not_found``, which is made anew."""

    num_not_found: Annotated[None, Field(exclude=True)] = None

    @model_validator(mode="after")
    def _is_older(self) -> Self:
        if "num_not_found" in self.model_fields_set:
            raise ValueError("num_not_found is null")
        return self


class StoredDiagnosis(Document):
    """``report/diagnosis.json``; an older yolofleet counted no objects that were not found."""

    detections_sha256: str
    diagnosis: DiagnosisDetails | OlderDiagnosis


def read_document(
    storage: Storage,
    key: str,
    kind: type[pydantic.BaseModel],
    cure: str = "remove it and release the run again",
) -> dict[str, Any] | None:
    """Return a JSON object of a run; None where there is none.

    Args:
        storage: The run directory.
        key: Which one.
        kind: What it must hold.
        cure: What to do where it is damaged.

    Raises:
        UserError: It is damaged, or too large.
        StorageError: It cannot be read, or a link leads out of the run directory.
    """
    try:
        data = storage.confined().get_at_most(key, MOST_DOCUMENT_BYTES)
    except ObjectNotFoundError:
        return None
    return parse_document(data, f"{storage.url}/{key}", kind, cure)


def parse_document(data: bytes, where: str, kind: type[pydantic.BaseModel], cure: str) -> dict[str, Any]:
    """Return the JSON object that data holds; arguments and errors as of `read_document`."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        kind.model_validate(document)  # pydantic's own JSON refuses names that are not UTF-8
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    else:
        return document
    raise UserError(f"{where}: is damaged ({one_line(reason)}); {cure}")
