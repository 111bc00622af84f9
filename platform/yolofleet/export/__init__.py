"""Export: deployed detectors as files for other runtimes, and ONNX Runtime as a faster one for CPUs.

Start at `exporter.export_detector` (write a file), `verification.verify` (compare it with torch),
`runtime.load_detector` (predict with it) and `formats` (a format of one's own). The package itself can be called:
``yolofleet.export(model, out)`` is the function of `yolofleet.api`, which bears the package's name.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package that is a function as well."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Do what `yolofleet.api.export` does."""
        return import_module("..api", __name__).export(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
