"""Values that specs hold: numbers of things, sizes in bytes, URLs without secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from yolofleet.redaction import holds_password

BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parsed_bytes(value: Any) -> Any:
    """Read sizes such as ``200GB``; plain numbers are bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in BYTE_UNITS:
        raise ValueError(f"{value!r} is not a size; write a number of bytes, or e.g. 500MB, 200GB, 1TB")
    return int(float(match[1]) * BYTE_UNITS[match[2].upper()])


def absolute_url(url: str) -> str:
    """Return a path as an absolute one, and a URL as it is."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, BeforeValidator(parsed_bytes), Field(ge=1)]


def _without_password(url: str) -> str:
    if holds_password(url):
        raise ValueError(
            "holds a password, and a spec is kept with the run for all to read; leave it out of the URL and give it in "
            "the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGPASSWORD, AWS_SECRET_ACCESS_KEY)"
        )
    return url


Url = Annotated[str, Field(min_length=1), AfterValidator(_without_password)]
