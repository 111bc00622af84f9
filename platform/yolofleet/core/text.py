"""Parts of messages: the nearest valid spelling, a number and its noun, a long list cut short, an error on one line.

Whatever cuts a text here leaves out its secrets first: half of a URL shows no longer that its other half is a password.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from unicodedata import east_asian_width
from urllib.parse import SplitResult, urlsplit

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact, redact_url

ES_ENDINGS = ("s", "x", "sh", "tch")
"""The nouns with these endings have "es" in the plural: class, box, batch, but not epoch."""
NEAREST_CUTOFF = 0.45
"""How alike two names must be (difflib's ratio) before one is offered for the other."""
WORD = re.compile(r"( *)([^ ]+)")
HANGING = re.compile(r" *(?:[^ ]+(?: [^ ]+){0,2} {2,})?")
"""Below what a wrapped line continues: its indent, and a name before two spaces or more."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NEAR_AN_END, MOST_MORE_DECIMALS = 0.1, 3
"""By how much of its distance to 0 or 1 a share may be rounded, and the decimals that it may get for that."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like the given one; None where none is like it."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=NEAREST_CUTOFF)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?", or nothing where no known name is like the given one."""
    match = nearest(name, known)
    return f"; did you mean '{match}'?" if match is not None else ""


def decode_text(data: bytes, *, errors: str = "strict") -> str:
    """Return the text of a file: UTF-8, or UTF-16 where its byte order mark says so, as Windows tools write it.

    Raises:
        UnicodeDecodeError: It is neither, and ``errors`` is "strict".
    """
    is_utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if is_utf16 else "utf-8-sig", errors=errors)


def and_more(items: Sequence[object], most: int, *, separator: str = ", ") -> str:
    """Join the first items and count the rest: "a, b, c and 4 more"."""
    shown = separator.join(str(item) for item in items[:most])
    left = len(items) - most
    return f"{shown} and {left} more" if left > 0 else shown


def plural(count: float, noun: str, many: str | None = None, *, form: str = ",") -> str:
    """Return a number with what it counts: "1 image", "2,000 images", "3 boxes", "0.5 hours", "1 file is missing".

    Args:
        count: The number.
        noun: What one is called, with the verb where that depends on the number: "file is missing".
        many: What several are called; the noun with its "s" or "es" where it is not given.
        form: How the number is written, as format() takes it.
    """
    number = f"{count:{form}}"
    if number == "1":
        return f"{number} {noun}"
    return f"{number} {many or noun + ('es' if noun.endswith(ES_ENDINGS) else 's')}"


def cut(text: str, most: int = 40) -> str:
    """Return a value from outside without secrets, or the first `most` characters of that and its length."""
    text = redact_url(text)
    return text if len(text) <= most else f"{text[:most]}... ({plural(len(text), 'character')})"


def fit(text: str, end: str = "", *, width: int) -> str:
    """Return a text without secrets and its end, in a width; the words that do not fit are left out whole."""
    text = redact(text)
    if len(text) + len(end) <= width:
        return text + end
    room = max(width - len(end) - 2, 1)
    return f"{text[: room + 1].rpartition(' ')[0] or text[:room]}..{end}"[:width]


def wrap_words(text: str, width: int) -> str:
    """Return a text in lines of a width, broken between words alone; a longer word stands on a line of its own.

    The rest of a line is indented as its line is, or as what stands in the line's second column.
    """
    return "\n".join(line for long in text.split("\n") for line in _wrap_line(long, width))


def _wrap_line(line: str, width: int) -> Iterator[str]:
    if _num_cells(line) <= width:
        yield line
        return
    begin = HANGING.match(line)
    indent = " " * (begin.end() if begin is not None and begin.end() <= width // 2 else 0)
    done = ""
    for gap, word in WORD.findall(line):
        if done.strip() and _num_cells(done) + len(gap) + _num_cells(word) > width:
            yield done
            done = indent + word
        else:
            done += gap + word
    yield done


def _num_cells(text: str) -> int:
    """Return how wide a text is on a terminal; colours take no room, and characters of East Asia two cells."""
    plain = COLOUR.sub("", text)
    return len(plain) if plain.isascii() else sum(2 if east_asian_width(c) in "WF" else 1 for c in plain)


def share_text(share: float, *, decimals: int = 0, kind: str = "%") -> str:
    """Return a share from 0 to 1 with more decimals near its ends, so that only 0 is "0%", and only 1 is "100%".

    Args:
        share: The number; outside of 0 to 1 it has as many decimals as tell it from both.
        decimals: How many it has in the middle.
        kind: ``%``, or ``f`` for the plain number.
    """
    shown = f"{share:.{decimals}{kind}}"
    for more in range(decimals, decimals + MOST_MORE_DECIMALS + 1):
        shown = f"{share:.{more}{kind}}"
        number = float(shown[:-1]) / 100 if kind == "%" else float(shown)
        if abs(number - share) <= NEAR_AN_END * min(abs(share), abs(1 - share)) + 1e-12:
            break
    return shown


class _Bounded(reprlib.Repr):
    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(redact_url(x), level)


_BOUNDED = _Bounded()
_BOUNDED.maxstring = _BOUNDED.maxother = 80


def short(value: object, most: int = 80) -> str:
    """Return how a value from outside is written, without secrets.

    It is cut inside as well, for it may be huge, or nested very deeply.
    """
    return _BOUNDED.repr(value)[:most]


def visible(text: str, most: int) -> str:
    """Return the start of a text with everything escaped that would move a cursor, break a line or not be UTF-8.

    Secrets are left out.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(text)[:most])


def one_line(text: object, most: int = 300) -> str:
    """Return a text or an error on one line, without secrets, cut after `most` characters.

    An empty error is named by its type.
    """
    line = " ".join(redact(str(text)).split())
    if not line and isinstance(text, BaseException):
        line = type(text).__name__
    return line[:most]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without secrets, cut after 300 characters; else its type."""
    lines = redact(str(error)).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def split_url(url: str, error: type[UserError] = UserError) -> SplitResult:
    """Return the parts of a URL, or of a path; its port is a number.

    Args:
        url: Any text.
        error: What to raise.

    Raises:
        UserError: Its host or port cannot be read, as in ``http://[::1:5000``; the error has the given type.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise error(
            f"{redact_url(url)}: its host or port is wrong; a port is a number, and brackets belong around an IPv6 "
            "address alone: write http://HOST:PORT or s3://BUCKET/FOLDER"
        ) from None
    return parts
