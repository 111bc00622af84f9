"""What is used of Ray without being public is checked before it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.system
@pytest.mark.parametrize("before", ["", "import ray.train.torch; "])
def test_a_ray_of_our_own_has_a_token_that_nobody_keeps(before: str, tmp_path: Path) -> None:
    """Also where something has imported Ray before: its import reads the environment."""
    code = (
        f"{before}import os\nfrom yolofleet.core.ray_runtime import ray_connection\n"
        "with ray_connection(dashboard=False): print(len(os.environ['RAY_AUTH_TOKEN']))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "64\n", done.stderr
    assert "authentication" not in done.stderr
    assert not (tmp_path / ".ray").exists()
