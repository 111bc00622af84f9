from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.redaction import holds_password, without_passwords

WORD = st.text("abcXYZ019-_.~%", min_size=1, max_size=12)
PASSWORD = st.text("abcXYZ019-_.~%:@!$&()*+,;=", min_size=1, max_size=20)


@given(WORD, PASSWORD, WORD, WORD)
def test_a_password_is_left_out_wherever_the_url_stands(user: str, password: str, host: str, path: str) -> None:
    secret = f"<{password}>"
    url = f"postgresql+driver://{user}:{secret}@{host}:5432/{path}"
    assert urlsplit(url).password == secret
    for text in (url, f"no answer from {url}, and {url}; try again", f'{{"uri": "{url}"}}'):
        assert holds_password(text)
        assert secret not in without_passwords(text) and f"{user}:***@{host}" in without_passwords(text)
        assert not any(part != "***" for part in (urlsplit(without_passwords(url)).password,))


@pytest.mark.parametrize(
    "text",
    [
        "http://mlflow:5000", "s3://bucket/a:b@c", "models:/shapes@champion", "registry:5000/x@sha256:0a", "me@host",
        "http://me@h/x", "sqlite:////a/b@c.db", '["http://host:80", "me@host"]', "http://[::1]:5000/a@b", "1:30 a@b",
    ],
)  # fmt: skip
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert not holds_password(text) and without_passwords(text) == text
