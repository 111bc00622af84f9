"""Finding the files that annotations name, in the forms that tools write names in.

A name that is a file's own wins. Names that are none are compared in one form: without case, without backslashes and
percent-encoding, accents composed, folders from the end. A single match that no other name claims is used and counted.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from yolofleet.data.source_folder import is_image_name

LONGEST_NAME = 4096
"""No path on a disk is longer; to compose accents takes quadratic time."""


def image_key(file_name: str) -> str | None:
    """Return the storage key for a ``file_name``; None where it would leave the folder of images."""
    if file_name.startswith(("/", "\\")) or file_name[1:3] in (":\\", ":/"):
        return None
    parts = [part for part in file_name.split("/") if part not in ("", ".")]
    return None if ".." in parts or ".." in file_name.split("\\") else "/".join(parts)


def without_type(key: str) -> str:
    """Return a key without the ending of its name."""
    return str(PurePosixPath(key).with_suffix("")) if key else key


def beside(key: str, folder: str, partner: str) -> str:
    """Return the key in a partner folder: of ``images/train/a`` it is ``labels/train/a``."""
    before, found, after = f"/{key}".rpartition(f"/{folder}/")
    return f"{before}/{partner}/{after}"[1:] if found else key


def find_files(names: Sequence[str], keys: Collection[str]) -> list[str | None]:
    """Return the key that each name means, or None where no key or several fit; equal names mean one key."""
    exact = set(keys)
    found: dict[str, str | None] = {}
    for name in names:
        key = image_key(name)
        found[name] = key if key in exact else None
    missing = [name for name, key in found.items() if key is None]
    if missing:
        free = exact - {key for key in found.values() if key is not None}
        claims = defaultdict(list)
        for name, key in _matches(missing, free):
            claims[key].append(name)
        found.update({claimed[0]: key for key, claimed in claims.items() if len(claimed) == 1})
    return [found[name] for name in names]


Entry = tuple[list[str], str]
"""The parts of a key, and the key."""


class KeysByEnd:
    """Keys that agree in their last parts; they are distinguished by the part before these, where one asks for that.

    Looking a name up takes as many steps as it has parts, however many files are called ``image.jpg``.

    Args:
        entries: The parts of each key, and the key.
        depth: Last parts that agree.
    """

    __slots__ = ("_groups", "_whole", "depth", "entries")

    def __init__(self, entries: list[Entry], depth: int = 0) -> None:
        self.entries = entries
        self.depth = depth
        self._whole: list[str] | None = None
        self._groups: dict[str, list[Entry] | KeysByEnd] | None = None

    @property
    def whole(self) -> list[str]:
        """The keys that have no other parts than those that agree."""
        if self._whole is None:
            self._whole = [key for parts, key in self.entries if len(parts) == self.depth]
        return self._whole

    def path(self, parts: Sequence[str]) -> Iterator[KeysByEnd]:
        """Yield the keys that agree with one more of a name's last parts each time, from all keys on."""
        group: KeysByEnd | None = self
        while group is not None:
            yield group
            group = group._with(parts[-1 - group.depth]) if group.depth < len(parts) else None

    def _with(self, part: str) -> KeysByEnd | None:
        """Return the keys with this part before those that agree; groups are made where they are asked for."""
        if self._groups is None:
            groups: defaultdict[str, list[Entry]] = defaultdict(list)
            for entry in self.entries:
                if len(entry[0]) > self.depth:
                    groups[entry[0][-1 - self.depth]].append(entry)
            self._groups = {**groups}
        group = self._groups.get(part)
        if isinstance(group, list):
            found = KeysByEnd(group, self.depth + 1)
            if len(group) > 1:  # that of a single key is made again as quickly
                self._groups[part] = found
            return found
        return group


def _matches(names: list[str], keys: Collection[str]) -> list[tuple[str, str]]:
    """Return (name, key) of each name with a single best key."""
    wanted = [(name, name_parts(name)) for name in names]
    last_parts = {parts[-1] for _, parts in wanted if parts}
    entries = [(parts, key) for key in keys if (parts := name_parts(key))]
    stems = [([*parts[:-1], parts[-1].rpartition(".")[0]], key) for parts, key in entries if is_image_name(key)]
    by_end, by_stem = (
        KeysByEnd([entry for entry in group if entry[0][-1] in last_parts]) for group in (entries, stems)
    )
    matches = []
    for name, parts in wanted:
        path = [*by_end.path(parts)][1:]
        if not path and parts and not is_image_name(parts[-1]):  # a name without an ending
            path = [*by_stem.path(parts)][1:]
        has_own_root = image_key(name) is None or "://" in name  # the root of another computer says nothing
        if path and (key := _best(parts, path, has_own_root)) is not None:
            matches.append((name, key))
    return matches


def _best(parts: list[str], path: list[KeysByEnd], has_own_root: bool) -> str | None:
    """Return the only key that agrees in most folders; unless the name has its own root, none of them may differ."""
    if has_own_root or path[-1].depth == len(parts):
        nearest = path[-1].entries
        return nearest[0][1] if len(nearest) == 1 else None
    whole = next((group.whole for group in reversed(path) if group.whole), [])
    return whole[0] if len(whole) == 1 else None


def name_parts(name: str) -> list[str]:
    """Return the folders and the last part of a name, in the form that names are compared in; none of one too long."""
    if len(name) > LONGEST_NAME:
        return []
    if "?d=" in name:  # Label Studio's local files
        name = name.partition("?d=")[2]
    elif "://" in name:
        name = name.partition("://")[2].partition("?")[0]
    text = unicodedata.normalize("NFC", unquote(name).replace("\\", "/")).casefold()
    return [part for part in unicodedata.normalize("NFC", text).split("/") if part not in ("", ".", "..")]
