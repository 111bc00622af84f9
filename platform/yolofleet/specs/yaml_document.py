"""YAML documents that anyone may have written: the one reader, and the writer whose text it reads back.

A document is built from the parser's events and holds nothing but what JSON holds: no tag makes an object, and an alias
is counted as what it stands for. Where YAML 1.1 and 1.2 read plain text differently, it is text (yes, no, on, off) or
refused (010, 1:30:00, 2024-01-01): no one can tell what was meant.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from yaml.resolver import Resolver

from yolofleet.core.errors import UserError
from yolofleet.core.local_files import read_regular
from yolofleet.core.text import cut, nearest, one_line

MOST_BYTES = 8 * 10**6
MOST_NODES = 100_000
"""Most values of a document, aliases replaced by what they stand for."""
CHARACTERS_OF_A_NODE = 80
"""Longer text counts as several values."""
MOST_LEVELS = 100
INTEGERS = range(-(2**63), 2**64)
MOST_DIGITS = 21
"""Characters of the longest integer: sign and 20 digits."""

_PREFIX = "tag:yaml.org,2002:"
_TEXT_TAGS = (f"{_PREFIX}str", "!")
_GROUP_TAGS = (None, "!", f"{_PREFIX}map", f"{_PREFIX}seq")
_BOOLEANS = {spelling: word == "true" for word in ("true", "false") for spelling in (word, word.title(), word.upper())}
_INTEGER = re.compile(r"[-+]?(?:0x_*[0-9a-fA-F][0-9a-fA-F_]*|0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_UNCLEAR = re.compile(r"[-+]?0[0-9_]+|0o[0-7]+")
"""What YAML 1.1 or 1.2 reads as an octal number."""
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML comes with libyaml
_YAML_1_1 = Resolver()


class DocumentError(UserError):
    """A YAML file or an override on the command line cannot be read."""


class RemoteFile(Protocol):
    """A file that is no path of this machine; its text is its URL (`yolofleet.storage.open_file` makes it)."""

    def read(self, most_bytes: int) -> bytes:
        """Return the content; more bytes than these are an error."""
        ...


AnyFile = str | Path | RemoteFile


def read_yaml(path: AnyFile) -> Any:
    """Read one YAML document from a file.

    Raises:
        DocumentError: The file is missing, no regular file, too large, not text, or no YAML.
        UserError: A remote file cannot be read.
    """
    if not isinstance(path, str | Path):
        if not hasattr(path, "read"):
            raise DocumentError(f"the path of a YAML file is needed, not {type(path).__name__}")
        return parse_yaml(path.read(MOST_BYTES), source=str(path))
    path = Path(path)
    try:
        return parse_yaml(read_regular(path, MOST_BYTES), source=str(path))
    except FileNotFoundError as error:
        raise DocumentError(f"{path}: no such file{_similar_files(path)}") from error
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {error.strerror}") from error


def parse_yaml(text: str | bytes, *, source: str, has_lines: bool = True) -> Any:
    """Parse one YAML document into the values that JSON has.

    Args:
        text: The document.
        source: Where it comes from, for messages.
        has_lines: Whether messages name the line; not for a text of one line, such as an override.

    Raises:
        DocumentError: The text is no YAML, or asks for more; names the source, the line, the key and the reason.
    """

    def located(line: int) -> str:
        return f"{source}:{line}" if has_lines else source

    builder = _Builder(located)
    try:
        data = text if isinstance(text, bytes) else text.encode()
        data.decode("utf-8-sig")
        for event in yaml.parse(data, Loader=_PARSER):
            builder.take(event)
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise DocumentError(f"{source}: not UTF-8 text (byte {error.start}); save the file as YAML in UTF-8") from error
    except yaml.reader.ReaderError as error:
        where = located(data.count(b"\n", 0, error.position) + 1)
        raise DocumentError(f"{where}: not readable as YAML: {error.reason}; leave the character out") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = source if mark is None else f"{located(mark.line + 1)}: column {mark.column + 1}"
        raise DocumentError(f"{where}: not readable as YAML: {one_line(error.problem)}") from error
    return builder.root[0] if builder.root else None


def write_yaml(document: Any) -> str:
    """Return a document as YAML that `parse_yaml` reads as the same document."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=False)


class _Dumper(yaml.SafeDumper):
    """Quotes also the text that YAML 1.1 reads as text, but `parse_yaml` does not, and repeats instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _pattern in (_FLOAT, _UNCLEAR):
    _Dumper.add_implicit_resolver("!unclear", re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789"))


@dataclass
class _Group:
    """A mapping or a list that is being read."""

    value: dict[Any, Any] | list[Any]
    anchor: str | None
    nodes_before: int
    key: Any = None
    has_key: bool = False
    merges: bool = False
    """Whether the key is ``<<``."""
    merged: list[dict[Any, Any]] = field(default_factory=list)
    """Mappings that ``<<`` brings in, the strongest first."""
    labels: set[str] = field(default_factory=set)
    """The keys as JSON writes them: 1 and "1" are one."""


class _Builder:
    """Builds a document from the parser's events, without recursion and within bounds."""

    def __init__(self, located: Callable[[int], str]) -> None:
        self.root: list[Any] = []
        self._located = located
        self._groups: list[_Group] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._line = 1

    def take(self, event: yaml.Event) -> None:
        """Take the next event."""
        self._line = event.start_mark.line + 1 if event.start_mark is not None else self._line
        match event:
            case yaml.ScalarEvent():
                self._count(1 + len(event.value) // CHARACTERS_OF_A_NODE)
                value = self._read_scalar(event)
                if event.anchor is not None:
                    self._anchors[event.anchor] = (value, 1 + len(event.value) // CHARACTERS_OF_A_NODE)
                self._add(value, is_merge=event.value == "<<" and not event.style and event.tag is None)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._begin(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()
            case yaml.AliasEvent():
                self._take_alias(str(event.anchor))
            case yaml.DocumentStartEvent() if self.root:
                raise self._error("a second document begins; a file holds one")

    def _begin(self, event: Any) -> None:
        if event.tag not in _GROUP_TAGS:
            raise self._error(f"the tag {cut(event.tag)} is not read; write a plain mapping or list")
        if len(self._groups) >= MOST_LEVELS:
            raise self._error(f"nested deeper than {MOST_LEVELS} levels; use fewer")
        group = _Group({} if isinstance(event, yaml.MappingStartEvent) else [], event.anchor, self._nodes)
        self._count(1)
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)
        self._groups.append(group)

    def _end(self) -> None:
        group = self._groups.pop()
        value = group.value
        if group.merged:
            merged: dict[Any, Any] = {}  # into one: a copy for each mapping would take quadratic time
            for mapping in (*reversed(group.merged), value):
                merged.update(mapping)
            value = merged
        if group.anchor is not None:
            self._anchors[group.anchor] = (value, self._nodes - group.nodes_before)
        self._add(value)

    def _take_alias(self, anchor: str) -> None:
        if any(group.anchor == anchor for group in self._groups) and anchor not in self._anchors:
            raise self._error(f"the alias *{cut(anchor)} refers to a value that contains it; write the value out")
        if anchor not in self._anchors:
            raise self._error(f"the alias *{cut(anchor)} has no anchor &{cut(anchor)} before it")
        value, nodes = self._anchors[anchor]
        self._count(nodes)
        self._add(value)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise self._error(
                f"more than {MOST_NODES:,} values (aliases count as the values that they stand for); write fewer"
            )

    def _add(self, value: Any, *, is_merge: bool = False) -> None:
        """Put a value that is whole where it belongs: into the innermost list, or as a key or value of a mapping."""
        if not self._groups:
            self.root.append(value)
            return
        group = self._groups[-1]
        if isinstance(group.value, list):
            group.value.append(value)
        elif not group.has_key:
            self._set_key(group, value, is_merge)
        else:
            group.has_key = False
            if group.merges:
                self._merge(group, value)
            else:
                group.value[group.key] = value

    def _set_key(self, group: _Group, key: Any, is_merge: bool) -> None:
        if isinstance(key, dict | list):
            raise self._error("a key must be plain text, not a mapping or a list")
        label = key if isinstance(key, str) else json.dumps(key)
        if not is_merge and (label in group.labels or key in group.value):
            raise self._error(f"key {cut(label)!r} is given twice; leave one of them out")
        group.labels.add(label)
        group.key, group.has_key, group.merges = key, True, is_merge

    def _merge(self, group: _Group, value: Any) -> None:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise self._error("'<<' merges mappings, but this is not one; name a mapping")
        group.merged += mappings

    def _read_scalar(self, event: Any) -> Any:
        """Return the value of plain text; quoted text is text."""
        text: str = event.value
        if (found := _NOT_TEXT.search(text)) is not None:
            raise self._error(f"{cut(text)!r} holds {found[0]!r}, which is not allowed in text; remove it")
        if event.tag in _TEXT_TAGS or (event.style and event.tag is None):
            return text
        if event.tag is not None:
            raise self._error(f"the tag {cut(event.tag)} is not read; write a plain value")
        tag = _YAML_1_1.resolve(  # type: ignore[no-untyped-call]
            yaml.ScalarNode, text, (True, False)
        ).removeprefix(_PREFIX)
        if tag == "null" or text in _BOOLEANS:
            return _BOOLEANS.get(text)
        if _INTEGER.fullmatch(text):
            return self._read_integer(text)
        is_number = _FLOAT.fullmatch(text) is not None and _UNCLEAR.fullmatch(text) is None
        if is_number and math.isfinite(number := float(text.replace("_", ""))):
            return number
        if is_number or _UNCLEAR.fullmatch(text) or tag in ("int", "float", "timestamp"):
            raise self._error(
                f"{cut(text)} is {_meaning(text, tag)} to some programs, and text or another number to others; write a "
                f'plain decimal number, or text in quotes: "{cut(text)}"'
            )
        return text

    def _read_integer(self, text: str) -> int:
        digits = text.replace("_", "")
        if len(digits) <= MOST_DIGITS and (number := int(digits, 16 if "x" in digits else 10)) in INTEGERS:
            return number
        raise self._error(f"{cut(text)} is beyond 64 bits; write less, or text in quotes")

    def _error(self, problem: str) -> DocumentError:
        keys = [
            str(len(group.value)) if isinstance(group.value, list) else one_line(cut(str(group.key)))
            for group in self._groups
            if group.has_key or isinstance(group.value, list)
        ]
        key = f"{'.'.join(keys[:8])}: " if keys else ""
        return DocumentError(f"{self._located(self._line)}: {key}{problem}")


def _meaning(text: str, tag: str) -> str:
    if tag == "timestamp":
        return "a date"
    if ":" in text:
        return "a number to the base of 60"
    return "an octal or binary number" if tag == "int" or _UNCLEAR.fullmatch(text) else "a non-finite number"


def _similar_files(path: Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.glob("*.y*ml")] if folder.is_dir() else []
    match = nearest(path.name, names)
    return f"; did you mean {folder / match}?" if match else ""
