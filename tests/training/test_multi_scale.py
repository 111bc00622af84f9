from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from yolofleet.training.loop.schedule import MultiScale


@given(st.integers(0, 2**63 - 1), st.integers(1, 40), st.sampled_from([8, 32, 64]), st.floats(0.01, 0.9))
def test_sizes_are_multiples_of_the_stride_within_the_range(seed: int, cells: int, stride: int, share: float) -> None:
    sizes = MultiScale(seed, cells * stride, stride, share)
    for step in range(20):
        side = sizes.at(step)
        assert side % stride == 0
        assert side == sizes.at(step)
        assert max(stride, (1 - share) * cells * stride - stride) <= side <= (1 + share) * cells * stride + stride


def test_the_published_range_is_met_end_to_end() -> None:
    seen = {MultiScale(0, 640, 32, 0.5).at(step) for step in range(3000)}
    assert seen == set(range(320, 961, 32))


def test_off_means_the_job_s_size() -> None:
    assert {MultiScale(3, 640, 32, 0.0).at(step) for step in range(50)} == {640}
