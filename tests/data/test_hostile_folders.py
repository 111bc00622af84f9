"""Folders of images and labels that somebody else made: links, pipes, depths and names that no dataset should hold."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from yolofleet.cli.main import main
from yolofleet.cli.predict import image_paths
from yolofleet.core.errors import UserError
from yolofleet.data.check import check_dataset
from yolofleet.data.check_page import check_page
from yolofleet.data.content import CheckedSplit, check_content
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.source_folder import SourceFolder
from yolofleet.storage import ObjectNotFoundError, StorageError, open_storage


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside" / "deep"
    folder.mkdir(parents=True)
    for name in ("secret.jpg", "deep/secret.jpg"):
        Image.new("RGB", (64, 48), (200, 20, 90)).save(tmp_path / "outside" / name, "JPEG")
    (tmp_path / "outside" / "secret.txt").write_text("password hunter2\n")
    return tmp_path / "outside"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 48), (90, 20, 200)).save(folder / "a.jpg", "JPEG")
    Image.new("RGB", (64, 48), (90, 20, 200)).save(folder / "sub" / "b.jpg", "JPEG")
    (folder / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return folder


def listed(folder: Path, *, follow_links: bool = False, **options: bool) -> tuple[set[str], dict[str, int]]:
    problems = ProblemLog()
    storage = SourceFolder(folder, problems, follow_links=follow_links, **options)
    keys = {entry.key for entry in storage.list()}
    assert keys == {entry.key for entry in storage.list()}
    return keys, problems.counts


OWN = {"a.jpg", "a.txt", "sub/b.jpg"}


@pytest.mark.parametrize(
    "target",
    ["../outside/secret.jpg", "{outside}/secret.jpg", "sub/../../outside/secret.jpg", "/proc/self/environ", "hop"],
)
def test_a_link_that_leads_out_is_left_out_counted_and_never_read(images: Path, outside: Path, target: str) -> None:
    (images / "hop").symlink_to(outside / "secret.jpg")
    (images / "link.jpg").symlink_to(target.format(outside=outside))
    assert listed(images) == (OWN, {"link_outside": 2})
    storage = SourceFolder(images, ProblemLog(), follow_links=False)
    for read in (storage.get, storage.open_stream, storage.size_bytes, storage.local_path):
        with pytest.raises(
            ObjectNotFoundError, match=r"link\.jpg: leads out of .*images through a link; --follow-links"
        ):
            read("link.jpg")
    assert listed(images, follow_links=True) == (OWN | {"hop", "link.jpg"}, {})


def test_a_link_that_stays_inside_is_read(images: Path) -> None:
    (images / "link.jpg").symlink_to("sub/b.jpg")
    (images / "same").symlink_to("sub")
    assert listed(images) == (OWN | {"link.jpg"}, {})


def test_a_link_to_a_folder_outside_is_followed_once_where_it_is_asked_for(images: Path, outside: Path) -> None:
    (images / "there").symlink_to(outside)
    (images / "again").symlink_to(outside)
    (outside / "back").symlink_to(images)
    (outside / "deep" / "up").symlink_to(outside)
    assert listed(images) == (OWN, {"link_outside": 2})
    keys, counts = listed(images, follow_links=True)
    assert counts == {} and keys > OWN and len(keys) == len(OWN) + 3
    with pytest.raises(ObjectNotFoundError):
        SourceFolder(images, ProblemLog(), follow_links=False).get("there/secret.jpg")


def test_pipes_broken_links_and_names_that_are_no_text_are_counted(images: Path) -> None:
    os.mkfifo(images / "pipe.jpg")
    (images / "nowhere.jpg").symlink_to("gone")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "back\\slash.jpg").write_bytes(b"")
    with open(os.fsencode(images) + b"/\xff\xfe.jpg", "wb"):
        pass
    assert listed(images) == (OWN, {"file_irregular": 1, "file_unreadable": 2, "file_name_unusable": 2})
    problems = ProblemLog()
    source, store = read_source(str(images), str(images), problems)
    assert check_dataset(source, store, problems).num_usable == 2
    problems.reasons().encode()


def nest(folder: Path, name: str, depth: int) -> None:
    """Make folders in folders, one step at a time: the whole path is too long for one call."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_folders_may_nest_deeply_and_one_that_cannot_be_opened_is_told(images: Path) -> None:
    nest(images, "d", 1010)
    assert listed(images) == (OWN, {}), "deeper than Python recurses"
    nest(images, "x" * 200, 40)
    assert listed(images) == (OWN, {"file_unreadable": 1})
    with pytest.raises(StorageError, match="cannot be listed: File name too long"):
        open_storage(images).list()
    subprocess.run(["rm", "-rf", str(images)], check=True)  # which Python's own removal cannot do


def test_a_folder_that_may_not_be_listed_is_told(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses nothing to the administrator, who may run this test."""
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = images / "sub"
    problems = ProblemLog()
    assert len(SourceFolder(images, problems, follow_links=False).list()) == 2
    assert problems.examples == {"file_unreadable": [f"{refused}: Permission denied"]}
    refused = images
    with pytest.raises(StorageError, match=r"images: cannot be listed: Permission denied; check its owner and mode"):
        SourceFolder(images, ProblemLog(), follow_links=False).list()


@pytest.mark.parametrize("name", ["loop", "gone", "pipe", "x" * 5000])
def test_a_folder_that_is_none_is_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    document = tmp_path / "boxes.json"
    document.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1}], "annotations": []}')
    for arguments in ((document, tmp_path / name), (tmp_path / name, images)):
        assert main(["data", "shard", *map(str, arguments), str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and name in told and "Traceback" not in told
    if name != "pipe":  # which is refused where it is read
        with pytest.raises(UserError, match="there is no image"):
            image_paths([str(tmp_path / name)], follow_links=False)


def test_a_label_that_is_a_link_shows_nothing_of_what_it_leads_to(
    images: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").symlink_to(outside / "secret.txt")
    assert main(["data", "check", str(labels), str(images)]) == 2
    told = capsys.readouterr()
    assert "hunter2" not in told.out + told.err
    assert f"{labels}: holds no file that can be read; link_outside: 1 (such as {labels}/a.txt -> " in told.err
    assert main(["data", "check", str(labels), str(images), "--follow-links"]) == 2
    assert "hunter2" in capsys.readouterr().err, "the bad line is shown where its file was asked for"


def test_the_page_of_a_check_shows_no_image_from_outside(images: Path, outside: Path) -> None:
    (images / "link.jpg").symlink_to(outside / "secret.jpg")
    document = images.parent / "boxes.json"
    document.write_text(
        '{"images": [{"id": 1, "file_name": "link.jpg", "width": 1, "height": 1}], '
        '"categories": [{"id": 1}], "annotations": []}'
    )
    for follow_links in (False, True):
        problems = ProblemLog()
        source, store = read_source(str(document), str(images), problems, follow_links=follow_links)
        split = CheckedSplit("x", check_dataset(source, store, problems), store)
        page = check_page(check_content([split], problems), problems)
        assert ("data:image/jpeg" in page) == follow_links and ("leads out of" in page) != follow_links


def test_shards_are_built_of_what_is_inside(
    images: Path, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "link.jpg").symlink_to(outside / "secret.jpg")
    assert main(["data", "shard", str(images), str(images), str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "out: 2 images (0 left out)" in told.out and "drop: link_outside x 2" in told.err
    assert main(["data", "shard", str(images), str(images), str(tmp_path / "all"), "--follow-links"]) == 0
    told = capsys.readouterr()
    assert "all: 3 images (0 left out)" in told.out and "link_outside" not in told.err


def test_images_to_predict_are_those_inside(images: Path, outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "link.jpg").symlink_to(outside / "secret.jpg")
    os.mkfifo(images / "pipe.jpg")
    inside = [images / "a.jpg", images / "sub" / "b.jpg"]
    assert image_paths([str(images)], follow_links=False) == inside
    told = capsys.readouterr().err
    assert (
        f"file_irregular: 1 (such as {images}/pipe.jpg), file_not_image: 1 (such as {images}/a.txt), link_out" in told
    )
    assert image_paths([str(images)], follow_links=True) == [images / "a.jpg", images / "link.jpg", inside[1]]
    assert image_paths([str(images / "link.jpg")], follow_links=False) == [images / "link.jpg"], "named by the user"
    (outside / "only").mkdir()
    (outside / "only" / "x.jpg").symlink_to(images / "a.jpg")
    with pytest.raises(UserError, match=r"only is a folder without images \(link_outside: 1"):
        image_paths([str(outside / "only")], follow_links=False)


def test_images_to_predict_are_of_all_types_and_in_all_folders_but_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.jfif", "c.JPE", "sub/e.jpg", "d.avif", "sub/f.TIFF", "out/drawn.jpg", ".hidden/g.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("notes.txt", "raw.cr2", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    found = image_paths([str(tmp_path)], follow_links=False, out=str(tmp_path / "out"))
    names = {str(path.relative_to(tmp_path)) for path in found}
    assert names == {"a.jpg", "b.jfif", "c.JPE", "sub/e.jpg", "d.avif", "sub/f.TIFF"}
    told = capsys.readouterr().err
    assert "file_hidden: 2 (such as" in told and "file_not_image: 2 (such as" in told
