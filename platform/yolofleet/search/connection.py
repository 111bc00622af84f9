"""A connection to Ray for the length of a with block: RAY_ADDRESS's cluster, or a Ray of this machine's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from yolofleet.errors import WorkError
from yolofleet.training.launch import RAY_ENVIRONMENT, RayConnection, make_token

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing reads Tune's own record
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Set where the user's environment does not set them."""
STARTS = 3
TOO_SLOW = "timed out during startup"
"""What Ray says where its node was not up within 30 seconds."""


@contextmanager
def connected_to_ray(*, show_worker_output: bool = False, dashboard: bool = True) -> Iterator[None]:
    """Connect to RAY_ADDRESS, or start a Ray of this machine's own that ends with the block.

    Args:
        show_worker_output: Pass on what Ray and the workers print.
        dashboard: Whether a Ray of our own has one; trials need it, and it takes seconds to start.

    Raises:
        UserError: No cluster answers at RAY_ADDRESS.
        WorkError: This machine is too busy for Ray to start.
    """
    for name, value in (RAY_ENVIRONMENT | TUNE_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS", "local")
    if "ray" not in sys.modules and address == "local":
        make_token()
    with ExitStack() as stack:
        _enter(stack, RayConnection(show_worker_output, dashboard=dashboard))
        import ray

        own = address == "local" and "RAY_ADDRESS" not in os.environ
        if own:  # trials that start workers of their own, and Ray's cleaner, must find this Ray and no other
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            yield
        finally:
            if own:
                del os.environ["RAY_ADDRESS"]


def _enter(stack: ExitStack, connection: RayConnection) -> None:
    """Connect; a Ray of our own that a busy machine kept from starting in time is tried again."""
    for attempt in range(STARTS):
        try:
            stack.enter_context(connection)
            return
        except Exception as error:  # Ray raises nothing more special
            if TOO_SLOW not in str(error):
                raise
            if attempt == STARTS - 1:
                raise WorkError(
                    f"Ray did not start in time, {STARTS} times: this machine is too busy. The same command goes on "
                    "once it is less so"
                ) from error
