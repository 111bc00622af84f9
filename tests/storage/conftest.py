"""Storages for the tests: a folder, an S3 server, and one that ignores conditions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_s3 import faulty_s3
from yolofleet.storage import Storage, open_storage


@pytest.fixture(params=["file", "s3", "s3 without conditions"])
def storage(request, tmp_path: Path, monkeypatch) -> Iterator[Storage]:
    if request.param == "file":
        yield open_storage(tmp_path / "run")
        return
    import boto3

    with faulty_s3() as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        from yolofleet.storage.s3 import S3Storage, _s3_client

        _s3_client.cache_clear()
        boto3.client("s3").create_bucket(Bucket="bucket")
        if "without" in request.param:

            def put_anyway(self: Storage, key: str, data: bytes) -> bool:
                if self.exists(key):
                    return False
                self.put(key, data)
                return True

            monkeypatch.setattr(S3Storage, "put_if_absent", put_anyway)
        yield open_storage("s3://bucket/run")
        _s3_client.cache_clear()
