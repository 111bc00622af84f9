"""Sources of datasets: every kind is read into the same form, classes and records with a store of images.

A `Source` says which annotations are of its kind, and reads them. The built-in ones are registered in `SOURCES` by
`yolofleet.data.read_source`; a plugin registers more, and ``--format`` accepts their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from yolofleet.core.errors import UserError
from yolofleet.core.extension_points import ExtensionPoint
from yolofleet.data.annotation_kind import kinds_of, source_files
from yolofleet.data.decode import check_file_size
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass
from yolofleet.data.source_folder import open_source
from yolofleet.storage import ObjectInfo, Storage, open_storage


@dataclass(frozen=True)
class SourceDataset:
    """A dataset as its source describes it, before its image files are read."""

    classes: tuple[ObjectClass, ...]
    records: tuple[ImageRecord, ...]


class ImageStore(Protocol):
    """Where images are read from: any ``Storage``, or the inside of tar files."""

    url: str

    def list(self) -> list[ObjectInfo]:
        """Return every image, sorted by key."""

    def get(self, key: str) -> bytes:
        """Return the bytes of an image."""


class ChosenImages:
    """Some of the images of a store."""

    def __init__(self, store: ImageStore, entries: Sequence[ObjectInfo]) -> None:
        self.url = store.url
        self._store = store
        self._entries = list(entries)

    def list(self) -> list[ObjectInfo]:
        """Return the chosen images, sorted by key."""
        return self._entries

    def get(self, key: str) -> bytes:
        """Return the bytes of an image."""
        return self._store.get(key)


def read_image_file(images: ImageStore, key: str, size_bytes: int, max_pixels: int) -> bytes:
    """Return the bytes of an image whose size is known from the listing.

    Raises:
        ImageError: It has more bytes than an image can need; it is not read.
        ObjectNotFoundError: It was removed since the listing.
    """
    check_file_size(size_bytes, max_pixels)
    return images.get(key)


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, where the splits of a dataset are read together."""

    annotations: ImageStore
    images: ImageStore
    problems: ProblemLog
    """Where problems of this split are counted."""


@dataclass(frozen=True)
class Annotations:
    """The annotations that a user named: a folder, or one file in its folder."""

    url: str
    """As the user wrote it."""
    storage: Storage
    files: tuple[ObjectInfo, ...]
    """The files of the folder, without our own datasets in it (`source_files`); for one file it alone."""
    is_folder: bool
    follow_links: bool = False
    """Whether links that lead out of a folder are read."""

    @staticmethod
    def open(url: str, problems: ProblemLog, *, follow_links: bool = False) -> Annotations:
        """List a folder, or find a file.

        Raises:
            UserError: There is neither.
        """
        folder = open_source(url, problems, follow_links=follow_links)
        if files := source_files(folder):
            return Annotations(url, folder, tuple(files), is_folder=True, follow_links=follow_links)
        if reasons := problems.reasons():
            raise UserError(f"{url}: holds no file that can be read; {reasons}")
        storage, key = open_file(url)
        files = [ObjectInfo(key, storage.size_bytes(key))]
        return Annotations(url, storage, tuple(files), is_folder=False, follow_links=follow_links)

    @property
    def folder(self) -> ImageStore:
        """The files of the folder, as a store of labels and images."""
        return ChosenImages(self.storage, self.files)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The built-in kinds of annotations that the folder holds, each with a file that shows it (`kinds_of`)."""
        return kinds_of(self.storage, self.files)

    def has(self, *endings: str) -> bool:
        """Return whether a file has one of these endings, in lower case."""
        return any(entry.key.lower().endswith(endings) for entry in self.files)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of source."""

    form: str
    """The form of its annotations, for messages: "a folder of VOC annotations (*.xml)"."""
    detect: Callable[[Annotations], bool]
    """Returns whether annotations are of this kind, from the names of the files or from what they say."""
    read: Callable[[Annotations, str | None, list[str] | None, ProblemLog], tuple[SourceDataset, ImageStore]]
    """Reads classes and records and finds the images. Its arguments: the annotations; the folder of images as the user
    named it, or None (see `open_images`); names by class, or None; the log where problems are counted. It raises
    UserError where the annotations cannot be used at all."""


SOURCES: ExtensionPoint[Source] = ExtensionPoint("format")
"""Kinds of sources by name; ``SOURCES.register("NAME")(Source(...))`` registers one."""


def open_images(images: str | None, problems: ProblemLog | None = None, *, follow_links: bool = False) -> ImageStore:
    """Open the folder of images of a source whose annotations do not hold them.

    Args:
        images: The folder as the user named it.
        problems: Where files that cannot be used are counted.
        follow_links: Read what links that lead out of the folder lead to.

    Raises:
        UserError: The user named none.
    """
    if images is None:
        raise UserError("the folder of images is missing, and these annotations do not hold the images; name it")
    folder = open_source(images, problems or ProblemLog(), follow_links=follow_links)
    return ChosenImages(folder, source_files(folder))


def open_file(url: str) -> tuple[Storage, str]:
    """Return the storage of the folder of a file, and the file's key in it."""
    folder, separator, name = url.rpartition("/")
    return open_storage((folder or "/") if separator else "."), name
