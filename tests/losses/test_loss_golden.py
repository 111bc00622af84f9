"""Assignments, terms and gradients equal to the published implementation's (tests/golden/README.md, losses/)."""

from __future__ import annotations

import numpy as np
import pytest

from losses.golden_loss import CASES, TAGS, load_case

CASES_AND_TAGS = [(case, tag) for case in CASES for tag in TAGS if tag != "aux_ota" or case.startswith("p6")]


@pytest.mark.parametrize("published_quirks", [False, True])
@pytest.mark.parametrize(("case", "tag"), CASES_AND_TAGS)
def test_positives_are_the_published_ones(case: str, tag: str, published_quirks: bool) -> None:
    golden = load_case(case, tag)
    found = golden.loss(published_quirks=published_quirks).assign(golden.predictions, golden.targets, golden.image_size)
    wanted = golden.positives()
    columns = 4 if tag == "plain" else 5
    assert [sorted(map(tuple, level[:, :columns].tolist())) for level in found] == wanted


@pytest.mark.parametrize("published_quirks", [False, True])
@pytest.mark.parametrize(("case", "tag"), CASES_AND_TAGS)
def test_terms_and_gradients_are_the_published_ones(case: str, tag: str, published_quirks: bool) -> None:
    golden = load_case(case, tag)
    predictions = [level.requires_grad_() for level in golden.predictions]
    result = golden.loss(published_quirks=published_quirks)(predictions, golden.targets, golden.image_size)
    result.total.backward()

    items = [term.item() for term in (result.box, result.objectness, result.classification)]
    np.testing.assert_allclose(items, golden.arrays[f"{tag}/items"][:3], rtol=1e-6)
    np.testing.assert_allclose(result.total.item(), golden.arrays[f"{tag}/loss"][0], rtol=1e-6)
    gradients = [level.grad.double() for level in predictions if level.grad is not None]
    assert len(gradients) == len(predictions)
    np.testing.assert_allclose([g.norm() for g in gradients], golden.arrays[f"{tag}/grad_l2"], rtol=1e-6)
    np.testing.assert_allclose([g.abs().sum() for g in gradients], golden.arrays[f"{tag}/grad_abs_sum"], rtol=1e-6)
