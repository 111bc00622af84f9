"""Fuzz targets of the secrets in URLs: no part of one survives, and ordinary reading never fails.

A case's bytes give a text around a URL, and what joins the words of a secret in it; each word must be gone.
"""

from __future__ import annotations

from yolofleet.core.redaction import holds_secret, redact, redact_url, redact_values

WORDS = ("zq0w", "zq1w", "zq2w")
SCHEMES = ("http", "https", "s3", "postgresql", "mysql+pymysql", "sqlite", "ftp", "HTTP")
NAMES = ("password", "Secret", "access_token", "key", "X-Amz-Signature", "pass%77ord", "AWSAccessKeyId", "sig")


def _secret(joints: str) -> str:
    """The words with one or two of the joints between them."""
    half = len(joints) // 2
    return f"{WORDS[0]}{joints[:half][:2] or '-'}{WORDS[1]}{joints[half:][:2] or '-'}{WORDS[2]}"


def _check(shown: str, url: str) -> None:
    for word in WORDS:
        if word in shown:
            raise AssertionError(f"{word} of {url!r} is left in {shown!r}")


def fuzz_redaction(data: bytes) -> None:
    """A secret in a URL never survives in any text, and to redact twice changes nothing."""
    text = data[2:].decode("utf-8", errors="replace").replace("zq", "")
    first, second = (*data[:2], 0, 0)[:2]
    around, _, joints = text.partition("|")
    before, _, after = around.partition("~")
    scheme, name = SCHEMES[first % len(SCHEMES)], NAMES[second % len(NAMES)]
    in_words = "".join(mark for mark in joints if not mark.isspace() and mark not in "\"'\\/?#")
    urls = (
        f"{scheme}://someone:{_secret(joints)}@host:80/x",
        f"{'http' if scheme.startswith(('p', 'm')) else scheme}://{_secret(in_words.replace(':', '-'))}@host/x",
        f"{scheme}://host/x?a=1&{name}={_secret(in_words)}",
    )
    for url in urls:
        shown = redact(f"{before} {url} {after}")
        _check(shown, url)
        if redact(shown) != shown:
            raise AssertionError(f"{url!r}: redacted twice it differs: {shown!r}")
        _check(str(redact_values({"uri": [url, (before, None)]})), url)
    if redact(redact(text)) != redact(text):
        raise AssertionError(f"redacted twice it differs: {text!r}")


def fuzz_holds_secret(data: bytes) -> None:
    """A URL with a secret of any shape is known as one, and without it is none."""
    text = data[1:].decode("utf-8", errors="replace").replace("zq", "")
    scheme = SCHEMES[(data[0] if data else 0) % len(SCHEMES)]
    for url in (f"{scheme}://someone:{_secret(text)}@host", f"https://host/?token={_secret(text)}"):
        shown = redact_url(url)
        if not holds_secret(url) or holds_secret(shown):
            raise AssertionError(f"{url!r}, shown as {shown!r}, is not known as a secret, or remains one")
        _check(shown, url)
    if holds_secret(text) != (redact_url(text) != text) or holds_secret(redact_url(text)):
        raise AssertionError(f"{text!r} is shown as {redact_url(text)!r}, which holds a secret")
