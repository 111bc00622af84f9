r"""Your own augmentation: it removes colour from some images.

    PYTHONPATH=examples YOLOFLEET_PLUGINS=greyscale yolofleet data show job.yaml \
        hyperparameters.extra_augmentations='[{name: greyscale, share: 0.3, strength: 0.8}]'

The same two variables before `yolofleet train` train with it.
"""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from yolofleet.specs.hyperparameters import AUGMENTATIONS, AugmentationStep


@AUGMENTATIONS.register("greyscale")
class Greyscale(AugmentationStep):
    """Blends an image with its grey values."""

    strength: Annotated[float, Field(ge=0, le=1)] = 1.0

    def apply(self, image: Any, boxes: Any, classes: Any, generator: np.random.Generator) -> Any:
        """Return the image with less colour; boxes and classes stay as they are."""
        grey = image.mean(axis=2, keepdims=True)
        return (self.strength * grey + (1 - self.strength) * image).astype(image.dtype), boxes, classes
