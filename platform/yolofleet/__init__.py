"""Distributed training platform for the YOLOv7 family of object detectors.

The functions of `yolofleet.api` are names of this package: ``yolofleet.train``, ``yolofleet.load``. None of them is
imported before it is used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Job", "Prediction", "Run", "__version__", "evaluate", "export", "load", "predict", "train", "tune"]


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module 'yolofleet' has no attribute '{name}'")
    if name == "export":  # a package has this name, too, and can be called
        return import_module(f"{__name__}.export")
    value = globals()[name] = getattr(import_module(f"{__name__}.api"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
