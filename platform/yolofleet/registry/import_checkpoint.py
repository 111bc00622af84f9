"""Importing published checkpoints as detector packages; nothing in the file is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolofleet.core.errors import UserError

COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink "
    "refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)
COCO_ABSENT_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""Category ids between 1 and 90 that the detection task leaves out."""


def coco_classes() -> list[tuple[int, str]]:
    """Return the 80 classes of COCO detection: (category id, name)."""
    ids = [number for number in range(1, 91) if number not in COCO_ABSENT_IDS]
    names = [name.replace("_", " ") for name in COCO_NAMES.split()]
    return list(zip(ids, names, strict=True))


def package_checkpoint(
    checkpoint: Path, model: str, folder: Path, *, annotations: Path | None = None
) -> dict[str, Any]:
    """Write the detector package of a published checkpoint, in its deployed form.

    Args:
        checkpoint: The file; its tensors are read, and no other object in it is created.
        model: Name of a model of the zoo, or path of a block table.
        folder: Where the package is written.
        annotations: A COCO annotation file that names the classes; without one, 80 classes are COCO's.

    Returns:
        Facts of it, as evidence for the registry.

    Raises:
        UserError: The file holds no weights of that model, or the classes are unknown.
    """
    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.models import build_model, deploy
    from yolofleet.models.weights import load_official_state_dict, official_num_classes, read_checkpoint
    from yolofleet.models.zoo import resolve
    from yolofleet.training.setup.pretrained import save_training_form

    table = resolve(model)
    state = read_checkpoint(checkpoint)
    num_classes = official_num_classes(table, state)
    classes = _classes(annotations, num_classes)
    detector = build_model(table, num_classes)
    load_official_state_dict(detector, state)
    save_detector(folder, deploy(detector.eval()), classes, table.image_size)
    save_training_form(folder, detector)
    return {"imported": {"file": checkpoint.name, "model": table.name, "num_classes": num_classes}}


def _classes(annotations: Path | None, num_classes: int) -> list[tuple[int, str]]:
    if annotations is None:
        if num_classes == len(coco_classes()):
            return coco_classes()
        raise UserError(
            f"the checkpoint predicts {num_classes} classes; name them with --classes ANNOTATIONS.json, a COCO file"
        )
    try:
        document = json.loads(annotations.read_text(encoding="utf-8-sig"))
        classes = [(int(entry["id"]), str(entry["name"])) for entry in document["categories"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{annotations}: has no COCO categories ({error})") from error
    if len(classes) != num_classes:
        raise UserError(f"{annotations}: names {len(classes)} classes, but the checkpoint predicts {num_classes}")
    return classes
