"""URLs that are none end in one line for the user, whatever stands in them."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.core.text import split_url
from yolofleet.registry.version_files import local_folder
from yolofleet.registry.versions import RegistryError


@given(st.text() | st.text("[]:/@%?#.-sx0123456789", max_size=20).map("http://".__add__))
def test_any_text_has_parts_or_is_told_to_be_wrong(text: str) -> None:
    with suppress(UserError):
        assert split_url(text) == urlsplit(text)


@pytest.mark.parametrize("url", ["http://me:hunter2@[::1:5000", "http://me:hunter2@host:none", "s3://me:hunter2@[x/d"])
def test_the_message_names_the_url_without_its_secret(url: str) -> None:
    with pytest.raises(UserError, match=r"://\*\*\*@.*its host or port is wrong") as wrong:
        split_url(url)
    assert "hunter2" not in str(wrong.value)


def test_an_artifact_location_of_a_hostile_server_is_refused() -> None:
    with pytest.raises(RegistryError, match=r"s3://\[bucket/1: its host or port is wrong"):
        local_folder("s3://[bucket/1")
