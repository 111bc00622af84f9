"""``yolofleet predict --objectness``: draws the objectness maps of images beside their detections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolofleet.cli.predict_folders import MAPS_NAME, MAPS_TEXT, make_folder, write_new
from yolofleet.core.terminal import note
from yolofleet.core.text import plural

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from yolofleet.evaluation.detector import Detector
    from yolofleet.models.network import Network

KEPT_BY = "run directories and imported versions keep the training form"


@dataclass(frozen=True)
class ObjectnessFolder:
    """A folder for the maps of a detector's images."""

    folder: Path
    model: Network
    image_size: int

    @staticmethod
    def open(
        folder: Path, model: str, detector: Detector, tracking_uri: str | None, image_size: int | None
    ) -> ObjectnessFolder:
        """Make the folder for the maps of a MODEL; says which heads there are none of, and why.

        Raises:
            UserError: The model's training form is damaged, the image size does not fit it, or there cannot be such a
                folder.
        """
        from yolofleet.cli.model_argument import package_folder
        from yolofleet.evaluation.detector_package import check_fit
        from yolofleet.registry.proof import load_training_form

        network = detector.model
        if detector.card.deployed:
            with package_folder(model, tracking_uri, training_form=True) as package:
                network = load_training_form(package, detector.card) or network
            network = network.to(detector.device).eval()
        name = detector.card.model.name
        if network.deployed and detector.card.model.auxiliary:
            note(
                f"{model} holds only the deployed form, and auxiliary heads exist only in the training form: the "
                f"maps are those of the lead head ({KEPT_BY})"
            )
        elif not network.num_auxiliary_levels:
            note(f"{name} has no auxiliary head: the maps are those of the lead head")
        size = detector.card.image_size if image_size is None else image_size
        check_fit(network, len(detector.classes), size)
        make_folder(folder)
        write_new(folder / MAPS_NAME, MAPS_TEXT)
        return ObjectnessFolder(folder, network, size)

    def draw(self, name: str, image: NDArray[np.uint8]) -> str:
        """Draw the maps of an image (H, W, 3) uint8 RGB into a PNG file, and return a line about it."""
        from yolofleet.data.draw import encode
        from yolofleet.evaluation.objectness import draw_objectness, objectness_maps

        maps, box = objectness_maps(self.model, image, self.image_size)
        path = self.folder / name
        path.write_bytes(encode(draw_objectness(image, maps, box), "png"))
        return f"{path}: objectness of {plural(len(maps), 'level')}"
