"""The classes of a dataset's splits: one list for all, and what is reported of classes that training lacks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from yolofleet.core.text import plural
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ObjectClass
from yolofleet.data.sources import SourceDataset

Identity = tuple[str, int]
"""What tells a class from others in every split: its name, and which of its split's classes of that name it is."""


def with_equal_classes(sources: Sequence[SourceDataset]) -> list[SourceDataset]:
    """Return the splits of a dataset with the classes of all: each COCO file has a list of its own.

    Two classes of one name in a list stay two.
    """
    if len({source.classes for source in sources}) == 1:
        return list(sources)
    ids: defaultdict[Identity, set[int]] = defaultdict(set)
    for source in sources:
        for identity, entry in zip(_identities(source.classes), source.classes, strict=True):
            ids[identity].add(entry.id)
    order = sorted(ids, key=lambda identity: (min(ids[identity]), identity))
    if len(set().union(*ids.values())) == sum(map(len, ids.values())) == len(ids):
        classes = tuple(ObjectClass(min(ids[identity]), identity[0]) for identity in order)
    else:  # the splits number them differently: the names count
        order = sorted(ids)
        classes = tuple(ObjectClass(number, name) for number, (name, _) in enumerate(order, start=1))
    index_of = {identity: index for index, identity in enumerate(order)}
    return [_with_classes(source, classes, index_of) for source in sources]


def _identities(classes: Sequence[ObjectClass]) -> list[Identity]:
    seen: Counter[str] = Counter()
    identities = []
    for entry in classes:
        identities.append((entry.name, seen[entry.name]))
        seen[entry.name] += 1
    return identities


def _with_classes(
    source: SourceDataset, classes: tuple[ObjectClass, ...], index_of: dict[Identity, int]
) -> SourceDataset:
    new = np.array([index_of[identity] for identity in _identities(source.classes)], dtype=np.int64)
    return SourceDataset(classes, tuple(replace(record, classes=new[record.classes]) for record in source.records))


def tell_classes(split: str, source: SourceDataset, train: SourceDataset, problems: ProblemLog) -> None:
    """Count classes of a split that the split for training has no object of, and names that may mean one class.

    Args:
        split: Its name.
        source: The split.
        train: The one for training, with the same classes; its own names are compared once.
        problems: Where they are counted.
    """
    if source is train:
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(entry.name for entry in train.classes):
            alike["".join(name.casefold().split())].append(name)
        for names in alike.values():
            if len(names) > 1:
                problems.add("class_names_alike", " and ".join(map(repr, names)))
        return
    here, learned = _num_objects(source), _num_objects(train)
    for index, entry in enumerate(source.classes):
        if here[index] and not learned[index]:
            problems.add("class_not_in_train", f"{entry.name!r}: {plural(here[index], 'object')} in {split}")


def _num_objects(source: SourceDataset) -> list[int]:
    totals = np.zeros(len(source.classes), dtype=np.int64)
    for record in source.records:
        totals += np.bincount(record.classes[~record.iscrowd], minlength=len(totals))
    return [int(total) for total in totals]
