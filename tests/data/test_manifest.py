"""The manifest as it goes to storage and to other processes."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from yolofleet.data.manifest import Manifest, ShardEntry
from yolofleet.data.records import ObjectClass

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
SHARDS = st.lists(
    st.builds(
        ShardEntry,
        st.from_regex(r"shard-[0-9]{6}", fullmatch=True),
        st.integers(2**31, 2**50),
        DIGESTS,
        st.integers(1, 10**6),
        DIGESTS,
    ),
    min_size=1,
    max_size=5,
    unique_by=(lambda entry: entry.name, lambda entry: entry.sha256),
)


@given(SHARDS)
def test_a_manifest_is_the_same_elsewhere(shards: list[ShardEntry]) -> None:
    manifest = Manifest(
        classes=(ObjectClass(1, "person"),),
        class_counts=(3,),
        num_samples=sum(entry.samples for entry in shards),
        num_empty=0,
        num_boxes=3,
        num_crowds=1,
        shards=tuple(shards),
        source_digest="d",
        problems={"skipped": {"no_image": 1}},
    )
    assert pickle.loads(pickle.dumps(manifest)) == manifest
    assert Manifest.from_bytes(manifest.to_bytes(), "here") == manifest
