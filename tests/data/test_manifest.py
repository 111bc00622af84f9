"""The manifest as it goes to storage and to other processes."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from yolofleet.data.manifest import Manifest, ShardEntry
from yolofleet.data.records import ObjectClass

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
SHARDS = st.lists(st.builds(ShardEntry, st.from_regex(r"shard-\d{6}", fullmatch=True), st.integers(0), DIGESTS,
                            st.integers(0, 10**6), DIGESTS), max_size=5)  # fmt: skip


@given(SHARDS)
def test_a_manifest_is_the_same_elsewhere(shards: list[ShardEntry]) -> None:
    manifest = Manifest(
        classes=(ObjectClass(1, "person"),),
        class_counts=(3,),
        num_samples=2,
        num_empty=0,
        num_boxes=3,
        num_crowds=1,
        shards=tuple(shards),
        source_digest="d",
        problems={"skipped": {"no_image": 1}},
    )
    assert pickle.loads(pickle.dumps(manifest)) == manifest
    assert Manifest.from_bytes(manifest.to_bytes(), "here") == manifest
