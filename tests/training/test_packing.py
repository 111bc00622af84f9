from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.training.checkpoint.packing import TYPE_NAMES, PackedTensors

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(max_examples=60)
@given(st.dictionaries(st.text("abc.é", min_size=1), st.tuples(SHAPES, st.sampled_from(list(TYPE_NAMES)))))
def test_any_tensors_are_read_back_as_they_were(kinds: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    first, second = (
        {name: (torch.rand(shape) * 100 - seed).to(dtype) for name, (shape, dtype) in kinds.items()} for seed in (0, 7)
    )
    packed = PackedTensors(first)
    for tensors in (first, second):
        assert packed.fits(tensors)
        packed.fill(tensors)
        found = safetensors.torch.load(bytes(packed.data))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_another_memory_layout_is_written_in_the_plain_one() -> None:
    kernel = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    packed = PackedTensors({"w": kernel})
    packed.fill({"w": kernel})
    assert torch.equal(safetensors.torch.load(bytes(packed.data))["w"], kernel)


@pytest.mark.parametrize("other", [{"w": torch.zeros(2)}, {"v": torch.zeros(3)}, {"w": torch.zeros(3).double()}, {}])
def test_other_tensors_do_not_fit(other: dict[str, torch.Tensor]) -> None:
    assert not PackedTensors({"w": torch.zeros(3)}).fits(other)
