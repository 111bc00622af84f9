"""What is used of Ray without being public is checked before it is used."""

from __future__ import annotations

import pytest

from yolofleet.core.errors import UserError
from yolofleet.core.ray_runtime import check_private_names


def test_this_ray_has_all_that_is_used() -> None:
    check_private_names()


@pytest.mark.parametrize("name", ["ray._private.no_module:name", "ray._private.state:GlobalState.no_method"])
def test_another_ray_is_refused_with_the_name_the_version_and_the_cure(name: str) -> None:
    import ray

    with pytest.raises(UserError, match=rf"Ray {ray.__version__} has no {name.replace(':', '.')}.*install the Ray"):
        check_private_names([name])
