"""The categories of a COCO file, which become the classes of a dataset."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from yolofleet.core.text import short
from yolofleet.data.annotation import AnnotationError
from yolofleet.data.json_values import is_whole
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ObjectClass
from yolofleet.data.source_ids import Identity, identity_of


def read_categories(entries: list[Any], name: str) -> dict[Identity, dict[str, Any]]:
    """Return the categories by their ids, in the order of the file.

    Args:
        entries: The list of the file.
        name: Name of the file in messages.

    Raises:
        AnnotationError: One has no id, that of another, or a name that is no text or number; or there is none.
    """
    categories: dict[Identity, dict[str, Any]] = {}
    for category in entries:
        identity = identity_of(category.get("id")) if isinstance(category, dict) else None
        if identity is None or (isinstance(identity, int) and identity < 0):
            raise AnnotationError(f"{name}: categories: {short(category)} needs an 'id' that is a number from 0 on")
        if not title_of(category):
            raise AnnotationError(
                f"{name}: categories: the name of id {short(identity)} is {short(category['name'])}; write its name as "
                "text, in quotes"
            )
        if identity in categories:
            raise AnnotationError(
                f"{name}: categories: id {short(identity)} is given to {short(title_of(categories[identity]))} and to "
                f"{short(title_of(category))}; give each category its own id"
            )
        categories[identity] = category
    if not categories:
        raise AnnotationError(f"{name}: categories: the list is empty; at least one class is needed")
    return categories


def classes_of(
    categories: dict[Identity, dict[str, Any]], used: set[Identity | None], name: str, problems: ProblemLog
) -> dict[Identity, ObjectClass]:
    """Return the classes by the ids of the source, in the order of these ids; other ids than numbers get 1, 2, ....

    Args:
        categories: The categories by their ids; one that only groups the others is removed.
        used: The ids that annotations refer to.
        name: Name of the file in messages.
        problems: Where problems are counted.
    """
    if (root := _root(categories)) is not None and root not in used:
        problems.add("category_unused_root", f"{name}: {short(title_of(categories[root]))} (id {short(root)})")
        del categories[root]
    titles: set[str] = set()
    for identity, category in categories.items():
        if (title := title_of(category)) in titles:
            problems.add("category_duplicate_name", f"{name}: {short(title)} (id {short(identity)})")
        titles.add(title)
        if not _has_name(category):
            problems.add("class_names_missing", f"{name}: category {short(identity)} has no name; write it there")
    if all(is_whole(identity) for identity in categories):
        return {identity: ObjectClass(int(identity), title_of(categories[identity])) for identity in sorted(categories)}
    problems.add("category_ids_renumbered", f"{name}: {short(list(categories))}")
    return {key: ObjectClass(number, title_of(entry)) for number, (key, entry) in enumerate(categories.items(), 1)}


def _root(categories: dict[Identity, dict[str, Any]]) -> Identity | None:
    """Return the category that all others have as their supercategory, as Roboflow writes its first one."""
    above = {identity: category.get("supercategory") for identity, category in categories.items()}
    num_below = Counter(title for title in above.values() if isinstance(title, str))
    for identity, category in categories.items():
        title = title_of(category)
        num_others_below = num_below[title] - (above[identity] == title)
        if above[identity] in (None, "", "none") and num_others_below == len(categories) - 1 > 0:
            return identity
    return None


def title_of(category: dict[str, Any]) -> str:
    """Return the name of a category, or its id where it has no name; nothing where the name is no text or number."""
    if not _has_name(category):
        return str(identity_of(category["id"]))
    title = category["name"]
    is_of_number = is_whole(title) or (isinstance(title, float) and math.isfinite(title))
    return clean_text(title) if isinstance(title, str) else str(title) if is_of_number else ""


def _has_name(category: dict[str, Any]) -> bool:
    name = category.get("name")
    return name is not None and not (isinstance(name, str) and not name.strip())


def clean_text(text: str) -> str:
    """Return text that can be written down: JSON allows halves of surrogate pairs, UTF-8 does not."""
    return text.encode(errors="replace").decode()
