"""The MODEL argument of a command: a run directory, a detector package, a registered version.

Arguments that name images, or folders of them.

Registered versions as sources of weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.core.byte_sizes import parse_bytes
from yolofleet.core.errors import UserError

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


def image_paths(images: list[Path]) -> Iterator[Path]:
    """The images that the arguments name; of a folder those in it whose name says image."""
    from yolofleet.core.errors import UserError
    from yolofleet.data.manifest import MANIFEST_KEY

    for path in images:
        if (path / MANIFEST_KEY).is_file():
            raise UserError(f"{path} is a sharded dataset: predict it alone and with --workers N")
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(f"{path} is a folder without images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from inside
        elif not path.exists():
            raise UserError(f"there is no image {path}")
        else:
            yield path


def located(models_uri: str, tracking_uri: str | None) -> tuple[Path, str]:
    """Return the folder of a registered version, and which version the name stands for."""
    from yolofleet.registry.version_files import detector_folder
    from yolofleet.registry.versions import find_version
    from yolofleet.tracking.mlflow_store import find_tracking_uri

    return detector_folder(models_uri, tracking_uri), find_version(find_tracking_uri(tracking_uri), models_uri).uri


ACCEPTED = "a run directory, a detector package (a folder with detector.json), or models:/NAME@ALIAS"


def open_detector(model: str, device: str, tracking_uri: str | None = None) -> Detector:
    """Load the detector that a MODEL argument names, to predict with it.

    Args:
        model: As for `package_folder`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tracking_uri: The MLflow server of a registered version; None takes the environment's.

    Raises:
        UserError: There is no such model, it is damaged, or the device is not there.
    """
    from yolofleet.evaluation.detector import chosen_device
    from yolofleet.export.runtime import load_detector

    chosen = chosen_device(device, "--device")
    with package_folder(model, tracking_uri) as folder:
        return load_detector(folder, chosen)


@contextmanager
def package_folder(model: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Give the detector package that a MODEL argument names a local folder, for the length of a with block.

    Args:
        model: A path or URL of a run directory or detector package, or ``models:/NAME@ALIAS`` or
            ``models:/NAME/VERSION``.
        tracking_uri: The MLflow server of a registered version; None takes the environment's.

    Raises:
        UserError: There is no such model.
    """
    from yolofleet.evaluation.detector_package import CARD_NAME, WEIGHTS_NAME
    from yolofleet.export.runtime import NETWORK_NAME
    from yolofleet.storage import open_storage

    if model.startswith("models:/"):
        from yolofleet.registry.version_files import detector_folder

        yield detector_folder(model, tracking_uri)
        return
    storage = open_storage(model) if "://" in model else open_storage(_existing_folder(model))
    place = next((place for place in (storage, storage.child("model")) if place.exists(CARD_NAME)), None)
    if place is None:
        raise _no_model(model, "it holds neither detector.json nor model/detector.json")
    if (local := place.local_path(CARD_NAME)) is not None:
        yield local.parent
        return
    with tempfile.TemporaryDirectory(prefix="yolofleet-detector-") as folder:
        for name in (CARD_NAME, WEIGHTS_NAME, *([NETWORK_NAME] if place.exists(NETWORK_NAME) else [])):
            place.download(name, Path(folder) / name)
        yield Path(folder)


def _existing_folder(model: str) -> Path:
    path = Path(model)
    if not path.exists():
        raise _no_model(model, "there is no such file or folder")
    if not path.is_dir():
        raise _no_model(model, "it is a file")
    return path


def _no_model(model: str, reason: str) -> Exception:
    from yolofleet.core.errors import UserError

    return UserError(f"{model} is no model: {reason}. MODEL is {ACCEPTED}")


def parse_byte_option(text: str, option: str) -> int:
    """Return the number of bytes that an option gives, at least one.

    Raises:
        UserError: It is no size, or less than one byte.
    """
    try:
        value = parse_bytes(text)
    except ValueError as error:
        raise UserError(f"{option} {error}") from None
    if value < 1:
        raise UserError(f"{option} {text!r}: at least one byte is needed")
    return value
