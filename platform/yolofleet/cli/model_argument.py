"""The MODEL argument of a command: a run directory, a detector package, or a registered version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import DETECTOR_CARD_NAME, TRAINING_FORM
from yolofleet.core.registered_names import registered_uri

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector
    from yolofleet.registry.versions import Version

ACCEPTED = (
    f"a run directory, a detector package (a folder with {DETECTOR_CARD_NAME}), or NAME@ALIAS or NAME/VERSION of a "
    "registered model"
)


def open_detector(model: str, device: str, tracking_uri: str | None = None) -> Detector:
    """Load the detector that a MODEL argument names, to predict with it.

    Args:
        model: As for `package_folder`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tracking_uri: The MLflow server of a registered version; None takes the environment's.

    Raises:
        UserError: There is no such model, it is damaged, or the device does not exist.
    """
    from yolofleet.evaluation.detector import select_device
    from yolofleet.export.runtime import load_detector

    chosen = select_device(device, "--device")
    with package_folder(model, tracking_uri) as folder:
        return load_detector(folder, chosen)


@contextmanager
def package_folder(model: str, tracking_uri: str | None = None, *, training_form: bool = False) -> Iterator[Path]:
    """Yield the detector package that a MODEL argument names as a local folder, for the length of a with block.

    Args:
        model: A path or URL of a run directory or detector package, or ``NAME@ALIAS`` or ``NAME/VERSION`` of a
            registered version; ``models:/`` may lead.
        tracking_uri: The MLflow server of a registered version; None takes the environment's.
        training_form: Whether the training form is wanted, too, where there is one.

    Raises:
        UserError: There is no such model.
    """
    from yolofleet.evaluation.detector_package import WEIGHTS_NAME
    from yolofleet.export.runtime import NETWORK_NAME
    from yolofleet.storage import open_storage

    if (version := registered_uri(model)) is not None:
        from yolofleet.registry.version_files import detector_folder

        yield detector_folder(version, tracking_uri)
        return
    path = Path(model)
    if "://" not in model and not path.is_dir():
        raise _no_model(model, "it is a file" if path.exists() else "there is no such file or folder")
    root = open_storage(model)
    storage = next((entry for entry in (root, root.child("model")) if entry.exists(DETECTOR_CARD_NAME)), None)
    if storage is None:
        raise _no_model(model, f"it holds neither {DETECTOR_CARD_NAME} nor model/{DETECTOR_CARD_NAME}")
    if (local := storage.local_path(DETECTOR_CARD_NAME)) is not None:
        yield local.parent
        return
    with tempfile.TemporaryDirectory(prefix="yolofleet-detector-") as folder:
        others = [NETWORK_NAME, *([TRAINING_FORM] if training_form else [])]
        for name in (DETECTOR_CARD_NAME, WEIGHTS_NAME, *filter(storage.exists, others)):
            storage.download(name, Path(folder) / name)
        yield Path(folder)


def find_weights(models_uri: str, tracking_uri: str | None) -> tuple[str, Version]:
    """Return the registered version that a job's ``initial_weights`` name, and the MLflow store that has it.

    Raises:
        UserError: There is no registry, or no such version.
        TrackingFailureError: MLflow does not answer.
    """
    from yolofleet.registry.versions import find_version
    from yolofleet.tracking.mlflow_store import check_reachable, find_tracking_uri

    uri = find_tracking_uri(tracking_uri, setting="tracking.uri")
    check_reachable(uri)
    return uri, find_version(uri, models_uri)


def resolve_weights(models_uri: str, tracking_uri: str | None) -> tuple[Path, str]:
    """Return the folder of the version that `find_weights` finds, and its URI.

    An alias is read once: one that moves meanwhile cannot lead to the files of another version.

    Raises:
        UserError: It holds no detector package.
    """
    from yolofleet.registry.version_files import detector_of_version

    uri, version = find_weights(models_uri, tracking_uri)
    return detector_of_version(uri, version), version.uri


def _no_model(model: str, reason: str) -> UserError:
    return UserError(f"{model or repr(model)} is not a model: {reason}. MODEL is {ACCEPTED}")
