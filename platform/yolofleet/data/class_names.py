"""The names of classes: a YAML file such as data.yaml, or a file with a name a line.

A name that is missing would move up those after it, so it is refused with its number, as is a count that differs. The
names of COCO's classes are here, too.
"""

from __future__ import annotations

from typing import Any

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.text import decode_text, short
from yolofleet.data.sources import open_file
from yolofleet.specs.yaml_document import MOST_BYTES, parse_yaml

YAML_ENDINGS = (".yaml", ".yml")


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


class ClassNames(list[str]):
    """Names by class, and what else data.yaml says of labels.

    Attributes:
        key_points: Numbers that the key points of a label line have (``kpt_shape``); None where it does not say.
    """

    key_points: int | None = None


def read_class_names(url: str) -> ClassNames:
    """Read the names of classes: a YAML file with ``names`` (a list, or numbers and names), or one name a line.

    Raises:
        UserError: No names are found, one is missing, or the file is not text.
    """
    storage, key = open_file(url)
    if (size_bytes := storage.size_bytes(key)) > MOST_BYTES:
        raise UserError(
            f"{url}: {format_bytes(size_bytes)} are too many for class names; name a file with one name a line"
        )
    return parse_class_names(storage.get(key), url)


def parse_class_names(data: bytes, url: str) -> ClassNames:
    """Read the names of classes from the bytes of a file; ``url`` ends with the name of the file.

    Raises:
        UserError: No names are found, one is missing, or the file is not text.
    """
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: not {error.encoding.upper()} at byte {error.start}; save the file as UTF-8") from None
    if url.lower().endswith(YAML_ENDINGS):
        return class_names_of(parse_yaml(text, source=url), url)
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise UserError(
            f"{url}: line {lines.index('') + 1} is blank, and would be the name of class {lines.index('')}; write the "
            "name, or remove the line"
        )
    return _names(lines, url)


def class_names_of(document: object, url: str) -> ClassNames:
    """Return the names of classes that a YAML document holds."""
    fields = document if isinstance(document, dict) else {"names": document}
    names = fields.get("names")
    if isinstance(names, dict):
        numbered = {int(key) if str(key).isdecimal() and len(str(key)) < 9 else key: names[key] for key in names}
        if set(numbered) != set(range(len(names))):
            raise UserError(f"{url}: names: the numbers must be 0, 1, 2, ..., not {short(list(names))}")
        names = [numbered[number] for number in range(len(names))]
    found = _names(names, url)
    if "nc" in fields and str(fields["nc"]) != str(len(found)):
        raise UserError(f"{url}: nc is {short(fields['nc'])}, but names holds {len(found)}; make the two agree")
    shape: Any = fields.get("kpt_shape")
    if shape is not None:
        is_sound = isinstance(shape, list) and len(shape) == 2 and type(shape[0]) is int and shape[0] > 0
        if not is_sound or shape[1] not in (2, 3):
            raise UserError(f"{url}: kpt_shape is {short(shape)}; write the number of key points, and 2 or 3")
        found.key_points = shape[0] * shape[1]
    return found


def _names(names: object, url: str) -> ClassNames:
    if not isinstance(names, list) or not names:
        seen = "no class names" if names is None else f"names: {short(names)} is no list of class names"
        raise UserError(f"{url}: {seen}; write one a line, or a YAML file with a list 'names'")
    return ClassNames(_class_name(number, name, url) for number, name in enumerate(names))


def _class_name(number: int, name: object, url: str) -> str:
    text = str(name).strip() if isinstance(name, str) or type(name) is int else ""
    if not text or text != text.encode(errors="replace").decode():  # YAML can write half a surrogate pair
        raise UserError(f"{url}: names: class {number} is {short(name)}; write its name as text, in quotes")
    return text
