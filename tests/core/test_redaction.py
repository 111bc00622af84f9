"""No part of a secret survives, whatever it is made of and wherever its URL stands; ordinary URLs stay as they are."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import holds_secret, names_secret, redact, redact_error, redact_url, redact_values
from yolofleet.core.terminal import guard_output
from yolofleet.core.text import cut, first_line, fit, one_line, short, visible

WORDS = tuple(f"zq{number}w" for number in range(4))
"""A secret is made of these, with odd characters between them: none may be left."""
SCHEMES = st.sampled_from(
    ("http", "https", "HTTP", "s3", "postgresql", "postgresql+psycopg2", "mysql+pymysql", "sqlite")
)
NO_ACCOUNTS = st.sampled_from(("http", "https", "s3", "ftp", "sqlite"))
NAMES = st.sampled_from(
    (
        "password", "Secret", "access_token", "key", "api-key", "X-Amz-Signature", "X-Amz-Credential", "sig",
        "AWSAccessKeyId", "TOKEN", "pass%77ord", "%74oken", "db[pwd]", "x-amz-security-token", "client_secret",
        "%2574oken", "JSESSIONID",
    )
)  # fmt: skip
TAILS = st.sampled_from(("", "/", ":5000/db", "/a@b", "/runs?page=2", "/#top"))
TEXTS = st.text(max_size=20) | st.text("ab:/@?= ,.\"'()", max_size=20)


def secrets(odd: str) -> st.SearchStrategy[str]:
    """Secrets whose words are joined by one or two of some odd characters."""
    joints = st.lists(st.text(odd, min_size=1, max_size=2), min_size=0, max_size=len(WORDS) - 1)
    return joints.map(lambda marks: "".join(a + b for a, b in zip(WORDS, [*marks, ""], strict=False)))


ANY = "@:/ \"'%#?&;=<>[]{}()|\\^`~!$*+,.-_\n\té€"
IN_WORDS = "@:%&;=[]{}|^`~!$*+.-_é€"
USERS = st.sampled_from(("u", "", "some.one", "me%40x", "x-token"))
LOGINS = st.builds("{}://{}:{}@host{}".format, SCHEMES, USERS, secrets(ANY), TAILS.filter(lambda tail: "@" not in tail))
TOKENS = st.builds("{}://{}@host{}".format, NO_ACCOUNTS, secrets(IN_WORDS), TAILS)
BARE = st.builds("{}:{}@host/path".format, st.just("user"), secrets(IN_WORDS + "/#?"))
FIELDS = st.builds(
    "{}://host/x{}{}={}".format,
    SCHEMES, st.sampled_from(("?", "?page=2&", "#", "?a=b;", "/#/runs?a=b&", ";")), NAMES,
    secrets(IN_WORDS + "/#?\"'"),
)  # fmt: skip
URLS = LOGINS | TOKENS | BARE | FIELDS
ENCODED = URLS.map(lambda url: quote(url, safe="")) | URLS.map(lambda url: quote(quote(url, safe=""), safe=""))
NO_PATH = ANY.translate(dict.fromkeys(map(ord, "/?#")))
WITH_BLANKS = st.builds("{}://{}@host{}".format, NO_ACCOUNTS, secrets(NO_PATH), TAILS)
BLANK_FIELDS = st.builds("https://host/x?{}={}".format, NAMES, secrets(ANY))


def check(shown: str) -> None:
    assert not any(word in shown for word in WORDS), shown


@given(URLS | ENCODED, TEXTS, TEXTS)
def test_no_part_of_a_secret_is_left_in_any_text(url: str, before: str, after: str) -> None:
    text = f"{before} {url} {after}"
    for shown in (redact(text), redact(f"no answer from {url}, and '{url}'; {text}"), str(UserError(text))):
        check(shown)
    check(one_line(text, 80) + first_line(ValueError(text)) + redact(json.dumps([text, {"uri": url}])))
    check(json.dumps(redact_values({"uri": [url, {text: (url, 1, None)}]})))


LONG = st.builds("{}://{}:{}{}@host{}".format, SCHEMES, USERS, secrets(ANY), st.sampled_from(("", "x" * 60)), TAILS)


@given(LONG | URLS | ENCODED, st.integers(20, 120))
def test_a_text_is_cut_without_its_secrets(url: str, most: int) -> None:
    """Of what is left after a cut, nothing might show any more that a secret begins there."""
    text = f"tracking.uri:{url}"
    check(" ".join((cut(url, most), cut(text, most), visible(text, most), fit(text, width=most), one_line(text, most))))
    check(" ".join(short(value, most) for value in (url, text, [url, {url: url}])))


@given(URLS | ENCODED | WITH_BLANKS | BLANK_FIELDS)
def test_a_url_with_a_secret_is_known_and_shown_without_it(url: str) -> None:
    assert holds_secret(url) and not holds_secret(redact_url(url))
    check(redact_url(url))


@given(st.text("ab:/@?=&;#%[]*\\\"' 25h\n") | st.text() | URLS)
def test_to_redact_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)
    assert holds_secret(text) == (redact_url(text) != text)


@pytest.mark.parametrize(
    "url",
    [
        "http://u:pa/ss@h/x", "http:/u:p@h", "http:\\\\u:p@h", "http:\\/\\/u:p@h", "//u:p@h/", "u:pw@host/path",
        "sqlite:///user:pw@host/db", "postgresql://u:12/34@h/db", "http://:pw@h", "http://u:@h", "http://a@b:c@d",
        "http://***@real@h", "ht\ntp://u:p@h", "  http://u:p@h ", "http://u:p@[::1]:80/", "http://h/x?next=http://u:p@h",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dabc", "host=db password=abc", "ftp:/u:p@h", "http://a\\b@host",
        "http://to ken@h",
    ],
)  # fmt: skip
def test_odd_shapes_are_secrets_too(url: str) -> None:
    assert holds_secret(url) and not holds_secret(redact_url(url))


@pytest.mark.parametrize(
    "text",
    [
        "http://mlflow:5000", "s3://bucket/a:b@c", "s3://bucket/key@v1?", "models:/shapes@champion", "me@host",
        "registry:5000/x@sha256:0a", "yolo:1.0@sha256:abc", "http://host/a@b", "http://host:5000/a@b", "sqlite:////a/b@c.db",
        "/data/me@example.com/x", "data/me@example.com", "postgresql+psycopg2://mlflow@postgres:5432/mlflow",
        "wasbs://c@a.blob.core.windows.net/x", "file:///data/a@b", "mailto:me@host", "C:\\data\\a@b", "1:30 a@b",
        "http://[::1]:5000/a@b", '["http://host:80", "me@host"]', '["http://host","me@host"]', "git+ssh://git@github.com/x",
        "http://mlflow:5000/#/experiments/1/runs/ab", "http://h/?keyword=x&keypoints=17&monkey=1", "s3://b/k?versionId=3",
        "http://h/?token=", "http://@host", "http://:@host", "http://***@host/x?token=***", "s3://bucket/x/%40y@z",
        "write http://HOST:PORT, https://HOST or postgresql://USER@HOST/DATABASE", "data.train=s3://b/x@v1",
    ],
)  # fmt: skip
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert not holds_secret(text) and redact(text) == text


PART = st.text("abcXYZ019-_.~", min_size=1, max_size=10)
PATH = st.lists(st.text("abcXYZ019-_.~@", min_size=1, max_size=10), max_size=3).map("/".join)


@given(
    SCHEMES, PART, st.none() | st.integers(0, 65535), PATH, st.sampled_from(("", "?page=2&sort=name@x", "#top", "?"))
)
def test_an_ordinary_url_stays_as_it_is(scheme: str, host: str, port: int | None, path: str, query: str) -> None:
    if port is not None and scheme[0] in "pm" and "@" in path + query:
        return  # to SQLAlchemy the port is a password
    url = f"{scheme}://{host}{'' if port is None else f':{port}'}/{path}{query}"
    assert not holds_secret(url) and redact(f"cannot read {url}: refused") == f"cannot read {url}: refused"


def test_names_of_secrets() -> None:
    assert all(
        map(names_secret, ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASS", "dbPassword", "X-Auth", "SSH_KEYS", "sig"))
    )
    assert holds_secret("https://host/api/data?code=x7Qm") and holds_secret("https://host/a?b=c&%63ode=x7Qm")
    ordinary = ("AWS_REGION", "RAY_AUTH_MODE", "TOKENIZERS_PARALLELISM", "compass", "KEYPOINTS", "CODE")
    assert not any(map(names_secret, ordinary))


def test_a_long_text_takes_linear_time() -> None:
    units = ("http:", "http://a:b ", "http://", "a:", "%41", "?a=1&", "(a:", "1:2,", "postgresql:1/", "?token=", "'")
    texts = [unit * 20_000 + end for unit in units for end in ("", "@x")]
    for text in [*texts, ",;:" * 20_000 + "?@x", "'1:." * 20_000 + "?@x"]:
        assert redact(redact(text)) == redact(text)


@pytest.fixture
def guarded() -> Iterator[None]:
    """Guards the output for a test, and puts back what was there."""
    make, hook = logging.getLogRecordFactory(), sys.excepthook
    sys.excepthook = sys.__excepthook__
    guard_output()
    yield
    logging.setLogRecordFactory(make)
    sys.excepthook = hook


@pytest.mark.usefixtures("guarded")
def test_logs_and_tracebacks_hold_no_secret(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://me:{WORDS[0]}@host"
    try:
        try:
            raise ConnectionError(f"no answer from {url}")
        except ConnectionError as error:
            raise ValueError("it failed") from error
    except ValueError as error:
        logging.getLogger("library").exception("trying %s again", url)
        sys.excepthook(type(error), error, error.__traceback__)
        told = capsys.readouterr().err
        assert str(redact_error(error).__cause__) == "no answer from http://***@host"
    assert "http://***@host" in told and "ConnectionError" in told and "Traceback" in told
    assert "trying http://***@host again" in caplog.text and "ConnectionError" in caplog.text
    check(told + caplog.text)
