"""Secrets in URLs: whether a URL holds one, and texts without them.

A URL is read as the clients read it that take one: HTTP clients, boto3, MLflow and SQLAlchemy, whose passwords may hold
``/``. Its secret is its user part (of a database, a file store or SSH only one with a password), or a value in query or
fragment whose name says so. In ``http://host/a@b`` the @ belongs to the path, and ``5000`` in ``http://host:5000/a@b``
is a port. Where a free text leaves open how far a secret goes, more is left out rather than less: up to the last @
behind a password, up to the next blank behind a query's secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any
from urllib.parse import unquote

STARS = "***"
MARKS = frozenset("@=%")
"""One of these stands behind or before every secret; most texts hold none."""
MOST_PASSES = 8
MOST_ENCODINGS = 3
"""How often one text may be percent-encoded."""
LONGEST_PASSWORD = 4000
"""Of a database, where a `/` or a port stands before the @."""
DATABASES = frozenset({"postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle"})
ACCOUNTS = DATABASES | {"ssh", "sftp", "hdfs", "abfs", "abfss", "wasb", "wasbs"}
"""Schemes whose user part without a password names an account or a container."""
OPENING = re.compile(
    r"(?<![a-z0-9])(?P<known>https?|s3|postgresql|mysql|mssql)(?:\+[a-z0-9_]{1,20})?:[/\\]?(?![/\\])"
    r"|:(?P<slashes>/(?![/\\])|[/\\]{2,})"
    r"|(?<![^\s\"'=(,<\[{])//",
    re.IGNORECASE,
)
"""What stands before a user part: a scheme, also with a slash too few or escaped, or two slashes alone."""
AUTHORITY = re.compile(r"(?:[^\s/?#\\\"']|\\(?![nrt\\/\"'])|[\"'](?![,:;)\]}>\s]|\Z))*")
PORT = re.compile(r":(?:\d{0,5}|PORT)[,;.:)\]}]{0,8}(?=[\s/?#\\\"'<>`]|\Z)")
"""With a few marks that may stand behind it in a sentence; among many, each would be read to the end of all again."""
IPV6_HOST = re.compile(r"\[[\w:.%-]{2,60}\](?::\d{0,5})?(?![^\s/?#\\\"'<>`,;.:)\]}])")
FIELD = re.compile(r"(?P<separator>[?&;#]|(?<![^\s\"'({\[,]))(?P<name>[^\s?&;#=/\"'<>]{1,100})=(?![\s&;#]|\Z)")
VALUE = re.compile(r"(?:[^\s\"']|[\"'](?![,:;)\]}>]*(?:\s|\Z)))+")
BARE_USER = re.compile(r"(?:^|(?<=[\s\"'`=(,<\[{]))(?P<user>[^\s/\\:@\"'`<>=(),\[\]{}]{1,200}):(?![/\\\s])")
SECRET_NAME = re.compile(
    r"passw|passphrase|secret|token(?!i[sz])|signature|credential|authorization|bearer"
    r"|(?<!mon)key(?!board|frame|point|space|word)|(?<!by)(?<!com)pass$|(?:pwd?|auth|sig|jwt)$|(?:^|_)sas$"
    r"|sess(?:ion)?_?id$"
)
PASSWORD_NAME = re.compile(r"(?:^|[^a-z])(?:password|passwd|pwd)$")
WORD, ANYTHING = re.compile(r"\S+"), re.compile(r".+", re.DOTALL)
WELL_FORMED = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://([\w.~%!$&'()*+,;=:-]*@)?[^@\s\"<>\\]*", re.ASCII)
WHOLE_USER = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):[/\\]{2}(?P<user>[^/?#]+)@", re.IGNORECASE)


def names_secret(name: str) -> bool:
    """Return whether a variable, a key or a query's field of this name holds a secret; it may be percent-encoded."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", _decode(name))
    return SECRET_NAME.search(re.sub(r"[^a-z0-9]+", "_", words.lower()).rstrip("_")) is not None


def holds_secret(url: str) -> bool:
    """Return whether a URL, or a value that may be one, holds a secret."""
    return redact_url(url) != url


def is_ambiguous(url: str) -> bool:
    """Return whether a URL holds a secret whose end is another one for each client and in each library's messages."""
    return holds_secret(url) and WELL_FORMED.fullmatch(url) is None


def redact_url(url: str) -> str:
    """Return a URL with stars for its secrets. Nothing surrounds it, so that a secret may hold blanks."""
    if MARKS.isdisjoint(url):
        return url
    plain = re.sub(r"[\t\r\n]", "", url).strip("".join(map(chr, range(33))))  # which clients leave out
    shown = _repeat(_redact_whole, plain)
    return url if shown == plain else shown


def redact(text: str) -> str:
    """Return a text with stars for the secrets of all URLs in it; a text without any is returned as it is."""
    return text if MARKS.isdisjoint(text) else _repeat(_redact_once, text)


def redact_values(value: Any, *, by_name: bool = False) -> Any:
    """Return plain data with its texts redacted.

    Args:
        value: Dictionaries, lists, texts, numbers.
        by_name: Leave out what stands under the name of a secret, too.
    """
    if isinstance(value, dict):
        return {
            redact_values(key): STARS if by_name and names_secret(str(key)) else redact_values(item, by_name=by_name)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_values(item, by_name=by_name) for item in value]
    return redact(value) if isinstance(value, str) else value


def redact_error(error: BaseException) -> BaseException:
    """Redact what an error and those that it came from say of themselves, for a traceback shows all; returns it."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link.args = tuple(
            redact_error(part) if isinstance(part, BaseException) else redact_values(part) for part in link.args
        )
        link = link.__cause__ or link.__context__
    return error


def _repeat(step: Callable[[str], str], text: str) -> str:
    """Take a step until it changes nothing; a text that it always changes is left out whole."""
    for _ in range(MOST_PASSES):
        if (shown := step(text)) == text:
            return text
        text = shown
    return STARS


def _redact_whole(url: str) -> str:
    """Redact a text that is one URL."""
    spans = []
    whole = WHOLE_USER.match(url)
    user, scheme = (whole["user"], whole["scheme"]) if whole else ("", "")
    if whole and user.strip(":") not in ("", STARS) and (":" in user or not _is_account(scheme)):
        spans.append(whole.span("user"))
    if secret := next(filter(_is_secret_field, FIELD.finditer(url)), None):
        spans.append((secret.end(), len(url)))
    return _with_stars(url, [*spans, *_bare_users(url, ANYTHING), *_plain_secrets(url), *_encoded_secrets(url)])


def _redact_once(text: str) -> str:
    return _with_stars(text, [*_plain_secrets(text), *_encoded_secrets(text)])


def _with_stars(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Replace spans, which may overlap."""
    pieces: list[str] = []
    done = 0
    for start, end in sorted(spans):
        if start > done or not pieces:
            pieces += [text[done:start], STARS]
        done = max(done, end)
    return "".join(pieces) + text[done:]


def _plain_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each secret; all are sought in the same text, for one may hold what begins another."""
    if "@" in text:
        yield from _user_parts(text)
        yield from _bare_users(text, WORD)
    if "=" in text:
        yield from _secret_values(text)


def _user_parts(text: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each secret user part behind an opening."""
    last_at, run_end, run_at, done = text.rfind("@"), 0, -1, 0
    for opening in OPENING.finditer(text):
        start = position = opening.end()
        if start < done:
            continue
        before = re.search(r"[A-Za-z0-9+.-]*\Z", text[max(0, opening.start() - 30) : opening.start()])
        scheme = opening["known"] or (before[0] if before else "")
        slashes = opening["slashes"] or ""
        end = None
        while position <= last_at:
            if text.startswith(f"{STARS}@", position):  # redacted already
                position += len(STARS) + 1
                start = position if end is None else start
                continue
            if position >= run_end:  # one run is read once: all openings within it end where it ends
                run_end = AUTHORITY.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing, too
                run_at = text.rfind("@", position, run_end)
            at = _end_of_user(text, position, run_end, run_at, last_at, scheme, slashes)
            if at is None:
                break
            end, position = at, at + 1
        if end is not None:
            done = end
            yield start, end


def _end_of_user(
    text: str, start: int, run_end: int, run_at: int, last_at: int, scheme: str, slashes: str
) -> int | None:
    """Return where the @ behind a secret user part stands; None where there is none.

    Args:
        text: The whole text.
        start: Where the user part would begin.
        run_end: Where the first `/`, blank or closing quote stands.
        run_at: The last @ before that, or a smaller number.
        last_at: The last @ of the text.
        scheme: The URL's scheme.
        slashes: The slashes behind it; one, or more than two, begin a path.
    """
    if IPV6_HOST.match(text, start):
        return None
    colon = text.find(":", start, run_end)
    has_port = colon >= 0 and PORT.match(text, colon) is not None
    if slashes.count("/") not in (0, 2) and not scheme.lower().startswith("http"):
        return _at_in_word(text, colon) if colon > start and not has_port else None
    if run_at >= start:
        if 0 <= colon < run_at:
            return last_at if text[start:run_at].strip(":") else None
        if not _is_account(scheme):
            return run_at if run_at > start else None
        return _at_in_word(text, colon) if colon >= 0 and not has_port and _is_account(scheme, DATABASES) else None
    if colon < 0:
        return None
    if not has_port:
        return last_at
    return _at_in_word(text, colon) if _is_account(scheme, DATABASES) else None


def _at_in_word(text: str, start: int) -> int | None:
    """Return where the last @ before the next blank stands."""
    word = text[start : start + LONGEST_PASSWORD].split(maxsplit=1)
    at = word[0].rfind("@") if word else -1
    return start + at if at >= 0 else None


def _is_account(scheme: str, accounts: frozenset[str] = ACCOUNTS) -> bool:
    return not accounts.isdisjoint(scheme.lower().split("+"))


def _bare_users(text: str, words: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of ``user:password`` in ``user:password@host`` without a scheme."""
    for word in words.finditer(text):
        whole, origin = word[0], word.start()
        at, slash = whole.rfind("@"), whole.find("/")
        if at < 0 or not re.match(r"[\w\[*-]", whole[at + 1 : at + 2]) or whole.startswith("sha256:", at + 1):
            continue
        for found in BARE_USER.finditer(whole, 0, at):
            port = PORT.match(whole, found.end() - 1)
            is_ordinary = found["user"].isdigit() or found["user"].lower() == "mailto" or port is not None
            if not (0 <= slash < found.start() or is_ordinary):
                yield origin + found.start(), origin + at
                break


def _secret_values(text: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the values of fields such as ``?token=`` and ``;pwd=``, with what follows to a blank."""
    done = 0
    for field in filter(_is_secret_field, FIELD.finditer(text)):
        if field.start() >= done and (value := VALUE.match(text, field.end())):
            done = value.end()
            if value[0] != STARS:
                yield value.span()


def _is_secret_field(field: re.Match[str]) -> bool:
    if field["separator"]:  # "code" is one of OAuth and Azure Functions; elsewhere it is a word like any other
        return names_secret(field["name"]) or _decode(field["name"]).lower() == "code"
    return PASSWORD_NAME.search(field["name"].lower()) is not None


def _encoded_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of what holds a secret once its percent-encoding is undone."""
    for word in WORD.finditer(text) if "%" in text else ():
        whole = word[0]
        if "%" not in whole or not _is_secret_encoded(whole):
            continue
        base, mark, _ = whole.partition("?")
        opening = re.match(r"\W*[\w+.-]{1,40}://", whole)
        kept = len(base) + 1 if mark and not _is_secret_encoded(base) else opening.end() if opening else 0
        yield word.start() + kept, word.end()


def _is_secret_encoded(word: str) -> bool:
    for _ in range(MOST_ENCODINGS):
        before, word = word, unquote(word)
        if word != before and any(_plain_secrets(word)):
            return True
    return False


def _decode(text: str) -> str:
    return reduce(lambda so_far, _: unquote(so_far), range(MOST_ENCODINGS), text)
