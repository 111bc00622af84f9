"""Ray as this platform uses it: its environment, its token, a connection for the length of a with block.

Ray itself is imported inside the functions, so that a command which may need Ray does not wait for its import.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from yolofleet.core.cores import num_cores
from yolofleet.core.errors import UserError, WorkError, require_package
from yolofleet.core.stopping import kept_handlers

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the driver's own watch looks for nodes that are about to go
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 lets anything else on the machine slow training down
}
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing reads Tune's own record
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
HEAD_RESOURCE = "node:__internal_head__"
"""A resource that Ray gives to the head node alone."""
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path(".ray") / "auth_token"
"""Below the home folder."""
PRIVATE_NAMES = (
    "ray._raylet:Config.initialize",
    "ray._private.state:available_resources_per_node",
    "ray._private.state:GlobalState.get_draining_nodes",
    "ray._private.state:GlobalState.get_cluster_config",
    "ray._private.state:GlobalState._connect_and_get_accessor",
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.FromString",
)
"""What is used of Ray although it is not public: there is nothing public for it (see docs/architecture.md)."""
STARTS = 3
TOO_SLOW = "timed out during startup"
"""Ray's message where its node was not up within 30 seconds."""


def set_defaults(environment: dict[str, str]) -> None:
    """Set variables that the user's environment does not set."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def starts_own_ray() -> bool:
    """Return whether a connection made now would start a Ray of this machine's own."""
    ray = sys.modules.get("ray")
    return (ray is None or not ray.is_initialized()) and os.environ.get("RAY_ADDRESS", "local") == "local"


def shares_cluster() -> bool:
    """Return whether the Ray that a connection made now would reach is a cluster, which others may use, too."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def make_token() -> None:
    """Give a Ray of our own a token that lives as long as it does; Ray itself would keep one in the home folder."""
    if not {"RAY_AUTH_MODE", *TOKEN_VARIABLES} & os.environ.keys():
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        if "ray" in sys.modules:  # its import has read the environment
            import_module("ray._raylet").Config.initialize("")


def use_token() -> None:
    """Let Ray's clients in this process use the token that is there, unless the user's environment says otherwise.

    It takes effect only before ray is imported.
    """
    has_one = any(name in os.environ for name in TOKEN_VARIABLES) or (Path.home() / TOKEN_FILE).is_file()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_one else "disabled")


def own_token() -> str | None:
    """Return the token that Ray's clients use here; None where there is none, or its file cannot be read."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / TOKEN_FILE).read_text().strip() or None
    except OSError:
        return None


@contextmanager
def ray_connection(*, show_worker_output: bool = False, dashboard: bool = True) -> Iterator[None]:
    """Connect to RAY_ADDRESS, or start a Ray of this machine's own that ends with the block.

    A connection that is there already is used and left open.

    Args:
        show_worker_output: Pass on what Ray and the workers print.
        dashboard: Whether a Ray of our own has one, in eleven processes; Ray Train asks it whether the workers of a
            killed trial still hold their resources. The driver of a single run sees to that itself.

    Raises:
        UserError: No cluster answers at RAY_ADDRESS.
        WorkError: This machine is too busy for Ray to start.
    """
    require_package("ray")
    set_defaults(RAY_ENVIRONMENT)
    if starts_own_ray():
        make_token()
    import ray

    check_private_names()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    with kept_handlers():  # Ray would end the process at SIGTERM, without a word
        _start(address, show_worker_output, dashboard)
    try:
        yield
    finally:
        ray.shutdown()


def check_private_names(names: Sequence[str] = PRIVATE_NAMES) -> None:
    """Make sure that this Ray has what is used of it without being public.

    Raises:
        UserError: It has not: which name, which version, and the cure.
    """
    import ray

    for name in names:
        module, _, path = name.partition(":")
        try:
            attrgetter(path)(import_module(module))
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"Ray {ray.__version__} has no {name.replace(':', '.')}, which yolofleet needs; install the Ray that "
                "it was tested with (requirements/run.txt)"
            ) from error


def _start(address: str, show_worker_output: bool, dashboard: bool) -> None:
    """Connect; a Ray of our own that a busy machine kept from starting in time is tried again."""
    import ray

    options = local_options(dashboard=dashboard) if address == "local" else {}
    for attempt in range(STARTS):
        try:
            ray.init(address=address, log_to_driver=show_worker_output, logging_level="warning", **options)
            return
        except ConnectionError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from error
        except Exception as error:  # Ray raises nothing more special
            if TOO_SLOW not in str(error):
                raise
            if attempt == STARTS - 1:
                raise WorkError(
                    f"Ray did not start in time, {STARTS} times: this machine is too busy. Run the same command again "
                    "when it is less busy; it resumes"
                ) from error


def local_options(*, dashboard: bool) -> dict[str, Any]:
    """Return how a Ray of this machine's own is started; its dashboard listens on loopback only."""
    options: dict[str, Any] = {"num_cpus": num_cores()}  # Ray would also count those that this process may not use
    if dashboard:
        return options | {"include_dashboard": True, "dashboard_host": "127.0.0.1"}
    return options | {"include_dashboard": False}


@contextmanager
def tune_connection(*, show_worker_output: bool = False, dashboard: bool = True) -> Iterator[None]:
    """Connect as `ray_connection` does, for Ray Tune: trials that start workers of their own find this Ray.

    Raises:
        UserError: No cluster answers at RAY_ADDRESS.
        WorkError: This machine is too busy for Ray to start.
    """
    set_defaults(TUNE_ENVIRONMENT)
    with ray_connection(show_worker_output=show_worker_output, dashboard=dashboard):
        import ray

        given = os.environ.get("RAY_ADDRESS")
        address = ray.get_runtime_context().gcs_address if given is None else given
        with environment_variable("RAY_ADDRESS", address):  # trials' workers and Ray's cleaner find this Ray, no other
            yield


@contextmanager
def environment_variable(name: str, value: str | None) -> Iterator[None]:
    """Set a variable of this process's environment for a block, or leave it out of it (None)."""

    def put(wanted: str | None) -> None:
        if wanted is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = wanted

    earlier = os.environ.get(name)
    put(value)
    try:
        yield
    finally:
        put(earlier)
