"""Importing published checkpoints as detector packages; nothing in the file is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.terminal import note
from yolofleet.core.text import plural, short
from yolofleet.data.class_names import coco_classes
from yolofleet.data.json_values import is_whole
from yolofleet.models.weights import match_classes


def package_checkpoint(
    checkpoint: Path, model: str, folder: Path, *, annotations: Path | None = None, source: str | None = None
) -> dict[str, Any]:
    """Write the detector package of a published checkpoint, in its deployed form.

    Args:
        checkpoint: The file; its tensors are read, and no other object in it is created.
        model: Name of a model of the zoo, or path of a block table.
        folder: Where the package is written.
        annotations: A COCO annotation file that names the classes; without one, those named in the checkpoint, else
            COCO's where it predicts 80.
        source: Where the file was fetched from, for the record.

    Returns:
        Facts of it, as evidence for the registry.

    Raises:
        UserError: The file holds no weights of that model, or the classes are unknown.
    """
    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.models import build_model, deploy
    from yolofleet.models.checkpoint_reader import open_checkpoint
    from yolofleet.models.weight_fit import check_architecture, layout_note
    from yolofleet.models.weights import load_official_state_dict, official_num_classes
    from yolofleet.models.zoo import resolve
    from yolofleet.registry.proof import save_training_form

    table = resolve(model)
    read = open_checkpoint(checkpoint)
    try:
        check_architecture(table, read.weights)
        num_classes = official_num_classes(table, read.weights)
    except UserError as error:
        raise UserError(f"{checkpoint.name}: --model {model}: {error}") from None
    if (remark := layout_note(table, read.weights)) is not None:
        note(remark)
    classes, named_by = _classes(annotations, read.class_names, num_classes)
    detector = build_model(table, num_classes)
    load_official_state_dict(detector, read.weights)
    save_detector(folder, deploy(detector.eval()), classes, table.image_size)
    save_training_form(folder, detector)
    facts = {"file": checkpoint.name, "model": table.name, "num_classes": num_classes, "classes_named_by": named_by}
    return {"imported": facts | ({"source": source} if source is not None else {})}


def _classes(
    annotations: Path | None, inside: tuple[str, ...] | None, num_classes: int
) -> tuple[list[tuple[int, str]], str]:
    """Return the classes, and what names them: the annotations, else the checkpoint, else COCO where it has as many."""
    if annotations is not None:
        return _annotated_classes(annotations, num_classes), "annotations"
    coco = coco_classes()
    if inside is not None and len(inside) == num_classes:
        is_coco = match_classes([name for _, name in coco], inside) == tuple(range(len(coco)))
        return (coco if is_coco else list(enumerate(inside))), "checkpoint"
    if num_classes == len(coco):
        return coco, "COCO"
    found = "names none" if inside is None else f"names {len(inside)}"
    raise UserError(
        f"the checkpoint predicts {plural(num_classes, 'class')} and {found}; name them with --classes "
        "ANNOTATIONS.json, a COCO file"
    )


def _annotated_classes(annotations: Path, num_classes: int) -> list[tuple[int, str]]:
    from yolofleet.data.coco_categories import read_categories, title_of
    from yolofleet.evaluation.json_file import read_json

    document = read_json(annotations)
    entries = document.get("categories") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{annotations}: has no COCO categories: 'categories' is {short(entries)}, not a list")
    categories = read_categories(entries, str(annotations)) if entries else {}
    if text_ids := [identity for identity in categories if not is_whole(identity)]:
        raise UserError(f"{annotations}: categories: id {short(text_ids[0])} is text; give each category a number")
    classes = [(int(identity), title_of(category)) for identity, category in categories.items()]
    if len(classes) != num_classes:
        named = plural(len(classes), "class")
        raise UserError(f"{annotations}: names {named}, but the checkpoint predicts {num_classes}")
    return classes
