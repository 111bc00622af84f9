"""Finding the files that annotations name, in the forms that tools write names in.

A name that is a file's own wins. Names that are none are compared in one form: without case, without backslashes and
percent-encoding, accents composed, folders from the end. A single match that no other name claims is taken and counted.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from yolofleet.data.source_folder import is_image_name


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


def _matches(names: list[str], keys: Collection[str]) -> list[tuple[str, str]]:
    """Return (name, key) of each name with a single best key."""
    by_last: defaultdict[str, list[tuple[list[str], str]]] = defaultdict(list)
    for key in keys:
        parts = name_parts(key)
        by_last[parts[-1]].append((parts, key))
        if is_image_name(key):
            by_last[parts[-1].rpartition(".")[0] + "\0"].append((parts, key))  # for names without an ending
    matches = []
    for name in names:
        if not (parts := name_parts(name)):
            continue
        last = parts[-1]
        candidates = by_last.get(last) or ([] if is_image_name(last) else by_last.get(f"{last}\0", []))
        has_own_root = image_key(name) is None or "://" in name  # the root of another computer says nothing
        ranked = sorted(
            ((tail, key) for candidate, key in candidates if (tail := _tail(parts, candidate, has_own_root)) >= 0),
            reverse=True,
        )
        if ranked and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
            matches.append((name, ranked[0][1]))
    return matches


def name_parts(name: str) -> list[str]:
    """Return the folders and the last part of a name, in the form that names are compared in."""
    if "?d=" in name:  # Label Studio's local files
        name = name.partition("?d=")[2]
    elif "://" in name:
        name = name.partition("://")[2].partition("?")[0]
    text = unicodedata.normalize("NFC", unquote(name).replace("\\", "/")).casefold()
    return [part for part in unicodedata.normalize("NFC", text).split("/") if part not in ("", ".", "..")]


def _tail(parts: list[str], candidate: list[str], has_own_root: bool) -> int:
    """Return how many folders before the last part agree; -1 where two differ, unless the name has its own root."""
    agreeing = 0
    for one, other in zip(reversed(parts[:-1]), reversed(candidate[:-1]), strict=False):
        if one != other:
            return agreeing if has_own_root else -1
        agreeing += 1
    return agreeing
