from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.data.augment import Augmenter, colour_matrix, draw_colour, paste_objects
from yolofleet.data.decode import decode_image
from yolofleet.data.geometry import Targets, draw_warp, worth_keeping
from yolofleet.data.mosaic import draw_partners, mosaic_of_four, mosaic_of_nine, render, single_image
from yolofleet.data.order import Purpose, keyed_generator
from yolofleet.data.records import LabelledImage, Outlines, boxes_inside
from yolofleet.specs.hyperparameters import Augmentation

SIDE = 160


def generator(seed: int = 0) -> np.random.Generator:
    return keyed_generator(seed, Purpose.AUGMENTATION, 1)


def labelled(width: int, height: int, boxes: list[list[float]], seed: int = 0) -> LabelledImage:
    """A black image with one white rectangle for each box."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[int(y1) : int(y2), int(x1) : int(x2)] = 255
    found = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return LabelledImage(
        str(seed), pixels, found, np.zeros(len(boxes), dtype=np.int64), Outlines.of([None] * len(boxes))
    )


def move_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def white_extent(image: np.ndarray) -> tuple[float, float, float, float]:
    """The box around what is at least half white, in pixels."""
    white = image[:, :, 0] > 127
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mosaic": 0.0},
        {"mosaic9_share": 1.0},
        {"degrees": 30.0},
        {"shear": 8.0},
        {"perspective": 0.0008},
        {"flipud": 1.0},
        {"degrees": 10.0, "shear": 4.0, "perspective": 0.0005, "flipud": 0.5},
    ],
    ids=str,
)
def test_boxes_stay_on_their_objects(changes: dict[str, float]) -> None:
    """One white object among four black images: its target is the box around what is white."""
    strengths = {"mixup": 0.0, "paste_in": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "scale": 0.5} | changes
    augmenter = Augmenter(Augmentation(**strengths), SIDE)
    labelled_images = [
        labelled(200, 150, [[60, 40, 150, 120]]),
        *(labelled(120, 180, [], seed) for seed in range(1, 9)),
    ]
    turned = any(strengths.get(name, 0) for name in ("degrees", "shear", "perspective"))
    num_seen = 0
    for seed in range(150):
        planes = np.empty((3, SIDE, SIDE), dtype=np.uint8)
        targets = augmenter.augment(0, labelled_images, generator(seed), planes)
        image = planes.transpose(1, 2, 0).copy()
        image[image == 114] = 0
        if not len(targets.boxes):
            continue
        num_seen += 1
        x1, y1, x2, y2 = targets.boxes[0]
        found = white_extent(image)
        slack = 0.75 * max(x2 - x1, y2 - y1) if turned else 1.5  # a turned box is the box around the turned corners
        assert found[0] >= x1 - 1.5 and found[1] >= y1 - 1.5 and found[2] <= x2 + 1.5 and found[3] <= y2 + 1.5
        assert max(found[0] - x1, found[1] - y1, x2 - found[2], y2 - found[3]) <= slack
    assert num_seen > 40


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(3, 400), st.integers(3, 400))
def test_upright_drawing_equals_the_way_through_a_canvas(seed: int, width: int, height: int) -> None:
    """Cutting and resizing in one go shows what pasting on a canvas and warping shows, to within a pixel's shift."""
    chance = np.random.default_rng(seed)
    smooth = cv2.resize(
        chance.integers(0, 255, (4, 4, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    labelled_images = [
        LabelledImage("x", smooth, np.empty((0, 4)), np.empty(0, dtype=np.int64), Outlines.of([])) for _ in range(4)
    ]
    layout = mosaic_of_four([0, 1, 2, 3], [(width, height)] * 4, SIDE, generator(seed))
    warp, scale = draw_warp(Augmentation(scale=0.4, translate=0.1), layout.size, SIDE, generator(seed + 1))
    direct, indirect = (np.empty((SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2))
    render(layout, labelled_images, warp, scale, direct)
    nearly = warp.copy()
    nearly[0, 1] = 1e-9  # no longer upright: takes the way through the canvas
    render(layout, labelled_images, nearly, scale, indirect)
    difference = np.abs(direct.astype(int) - indirect.astype(int))
    assert np.median(difference) <= 4 and (difference > 40).mean() < 0.12


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=9, max_size=9))
def test_cells_lie_on_the_canvas_and_never_overlap(seed: int, sizes: list[tuple[int, int]]) -> None:
    for layout in (
        mosaic_of_four([0, 1, 2, 3], sizes, SIDE, generator(seed)),
        mosaic_of_nine(list(range(9)), sizes, SIDE, generator(seed)),
        single_image(0, sizes, SIDE),
    ):
        covered = np.zeros((layout.size, layout.size), dtype=int)
        for tile in layout.tiles:
            x1, y1, x2, y2 = (int(value) for value in tile.cell)
            assert 0 <= x1 <= x2 <= layout.size and 0 <= y1 <= y2 <= layout.size
            covered[y1:y2, x1:x2] += 1
        assert covered.max() <= 1


@pytest.mark.parametrize("count", [4, 9])
@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 8, 16])
def test_partners_hold_the_own_image_once_where_there_are_enough(count: int, num_images: int) -> None:
    for seed in range(20):
        drawn = draw_partners(0, num_images, count, generator(seed))
        assert len(drawn) == count and set(drawn) <= set(range(num_images)) and 0 in drawn
        if num_images >= count:
            assert len(set(drawn)) == count
        elif num_images > 1:
            assert drawn.count(0) == 1


def test_every_image_is_seen_four_times_as_often_as_there_are_samples() -> None:
    counts = np.zeros(8)
    for seed in range(800):
        for own in range(8):
            for partner in draw_partners(own, 8, 4, generator(seed * 8 + own)):
                counts[partner] += 1
    assert counts.sum() == 4 * 800 * 8 and np.abs(counts / counts.mean() - 1).max() < 0.05


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_the_box_of_a_cut_polygon_is_that_of_its_pixels(seed: int) -> None:
    """Against a raster: fill the polygons, cut the window out, take the box around what is left."""
    chance = np.random.default_rng(seed)
    polygons = [[float(v) for v in chance.uniform(0, 100, size=2 * int(chance.integers(3, 9)))] for _ in range(3)]
    outlines = Outlines.of([[polygon] for polygon in polygons])
    x1, x2 = sorted(chance.uniform(0, 100, size=2))
    y1, y2 = sorted(chance.uniform(0, 100, size=2))
    boxes = boxes_inside(outlines.ends, outlines.owners, np.array([[x1, y1, x2, y2]] * 3))
    fine = 8  # raster cells a pixel
    centres = (np.arange(100 * fine) + 0.5) / fine
    for polygon, box in zip(polygons, boxes, strict=True):
        points = np.array(polygon).reshape(-1, 2)
        grid_x, grid_y = np.meshgrid(centres[(centres > x1) & (centres < x2)], centres[(centres > y1) & (centres < y2)])
        inside = np.zeros(grid_x.shape, dtype=bool)
        for first, last in zip(points, np.roll(points, -1, axis=0), strict=True):
            spans = (first[1] > grid_y) != (last[1] > grid_y)
            with np.errstate(divide="ignore", invalid="ignore"):
                at = first[0] + (grid_y - first[1]) / (last[1] - first[1]) * (last[0] - first[0])
            inside ^= spans & (grid_x < at)
        if inside.sum() < 4:
            continue
        found = np.array([grid_x[inside].min(), grid_y[inside].min(), grid_x[inside].max(), grid_y[inside].max()])
        assert (box[:2] <= found[:2] + 1e-6).all() and (box[2:] >= found[2:] - 1e-6).all(), "holds what is inside"
        assert (box[:2] >= (x1 - 1e-9, y1 - 1e-9)).all() and (box[2:] <= (x2 + 1e-9, y2 + 1e-9)).all()


def test_a_window_inside_an_object_is_its_box_and_one_outside_finds_nothing() -> None:
    outlines = Outlines.of([[[0.0, 0.0, 90.0, 0.0, 90.0, 90.0, 0.0, 90.0]], None])
    assert outlines.has_polygon.tolist() == [True, False]
    for window, box in (
        ([10, 20, 30, 40], [10, 20, 30, 40]),
        ([95, 95, 99, 99], [0, 0, 0, 0]),
        ([50, 50, 99, 99], [50, 50, 90, 90]),
        ([-5, -5, 99, 99], [0, 0, 90, 90]),
    ):
        assert boxes_inside(outlines.ends, outlines.owners, np.array([window], dtype=float)).tolist() == [box]


def test_warps_without_strength_change_nothing() -> None:
    warp, scale = draw_warp(Augmentation.none(), SIDE, SIDE, generator())
    assert np.allclose(warp, np.eye(3)) and scale == 1.0


def test_warps_are_drawn_from_the_published_ranges() -> None:
    strengths = Augmentation(scale=0.9, translate=0.2, degrees=10.0)
    drawn = [draw_warp(strengths, 2 * SIDE, SIDE, generator(seed)) for seed in range(2000)]
    scales = np.array([scale for _, scale in drawn])
    centres = np.array([move_points(np.array([[SIDE, SIDE]], dtype=float), warp)[0] for warp, _ in drawn]) / SIDE
    angles = np.degrees([np.arctan2(warp[0, 1], warp[0, 0]) for warp, _ in drawn])
    for values, low, high in ((scales, 0.1, 2.0), (centres, 0.3, 0.7), (angles, -10, 10)):
        assert values.min() >= low and values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.04)


def test_boxes_worth_keeping_follow_the_published_rule() -> None:
    before = np.array([[0, 0, 10, 10]] * 5, dtype=float)
    after = np.array([[0, 0, 10, 10], [0, 0, 2, 10], [0, 0, 3, 3], [0, 0, 3, 4], [0, 0, 2.5, 60]], dtype=float)
    assert worth_keeping(before, after, 0.1).tolist() == [True, False, False, True, False]


def hsv_by_tables(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The published colour augmentation: gains on hue, saturation and value through lookup tables."""
    levels = np.arange(256, dtype=np.float64)
    tables = [(levels * gains[0]) % 180, np.clip(levels * gains[1], 0, 255), np.clip(levels * gains[2], 0, 255)]
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    changed = [cv2.LUT(channel, table.astype(np.uint8)) for channel, table in zip(channels, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(changed), cv2.COLOR_HSV2RGB)


def test_colours_are_distributed_as_those_of_the_published_tables(test_data: Path) -> None:
    """On real images: means, their spread, and histograms of every channel."""
    chance = np.random.default_rng(0)
    files = sorted((test_data / "coco128" / "images").glob("*.jpg"))[:24]
    images = [cv2.resize(decode_image(path.read_bytes()), (64, 64), interpolation=cv2.INTER_AREA) for path in files]
    strengths = Augmentation()
    made: list[list[np.ndarray]] = [[], []]
    for seed in range(1200):
        image = images[seed % len(images)]
        matrix = draw_colour(strengths, generator(seed))
        assert matrix is not None
        made[0].append(cv2.transform(image, matrix))
        gains = 1 + chance.uniform(-1, 1, size=3) * (strengths.hsv_h, strengths.hsv_s, strengths.hsv_v)
        made[1].append(hsv_by_tables(image, gains))
    ours, theirs = np.array(made[0]), np.array(made[1])  # (samples, 64, 64, 3)
    assert ours.mean(axis=(0, 1, 2)) == pytest.approx(theirs.mean(axis=(0, 1, 2)), rel=0.05)
    assert ours.mean(axis=(1, 2, 3)).std() == pytest.approx(theirs.mean(axis=(1, 2, 3)).std(), rel=0.1)
    saturation = [np.ptp(values, axis=3).mean() for values in (ours, theirs)]
    assert saturation[0] == pytest.approx(saturation[1], rel=0.1)
    for channel in range(3):
        shares = [np.histogram(v[..., channel], bins=16, range=(0, 256))[0] / v[..., 0].size for v in (ours, theirs)]
        assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.06, "total variation between the histograms"


def test_colour_matrices_keep_grey_and_scale_as_asked() -> None:
    grey = np.array([100.0, 100.0, 100.0])
    assert np.allclose(colour_matrix(0.5, 1.7, 1.0) @ grey, grey, atol=0.5)
    assert np.allclose(colour_matrix(0.0, 1.0, 1.0), np.eye(3), atol=1e-5)
    assert np.allclose(colour_matrix(0.0, 1.0, 0.6) @ grey, 60, atol=0.5)


def test_transforming_in_place_equals_transforming_aside() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    matrix = colour_matrix(0.05, 1.3, 0.9)
    aside, inside = cv2.transform(image, matrix), image.copy()
    cv2.transform(inside, matrix, dst=inside)
    assert (aside == inside).all()


def test_equal_generators_make_equal_samples() -> None:
    labelled_images = [labelled(80 + 10 * number, 90, [[10, 10, 60, 70]], number) for number in range(5)]
    made = []
    for _ in range(2):
        augmenter = Augmenter(Augmentation(mixup=0.5), SIDE)
        planes = np.empty((10, 3, SIDE, SIDE), dtype=np.uint8)
        targets = [augmenter.augment(seed % 5, labelled_images, generator(seed), planes[seed]) for seed in range(10)]
        made.append((planes.tobytes(), [target.boxes.tobytes() for target in targets]))
    assert made[0] == made[1]


def test_extreme_images_are_augmented() -> None:
    labelled_images = [labelled(*size, [[0, 0, size[0], size[1]]]) for size in ((4000, 20), (3, 3000), (1, 1), (5, 4))]
    augmenter = Augmenter(Augmentation(degrees=5.0), SIDE)
    planes = np.empty((3, SIDE, SIDE), dtype=np.uint8)
    for seed in range(60):
        targets = augmenter.augment(seed % 4, labelled_images, generator(seed), planes)
        assert np.isfinite(targets.boxes).all()


def test_pasted_objects_bring_their_own_targets() -> None:
    """White discs on black are pasted into a grey image: what is white is what the targets say."""
    pixels = np.zeros((200, 240, 3), dtype=np.uint8)
    cv2.circle(pixels, (120, 100), 60, (255, 255, 255), -1)
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    polygon = (np.stack([120.5 + 60 * np.cos(angles), 100.5 + 60 * np.sin(angles)], axis=1)).reshape(-1).tolist()
    boxes = np.array([[60.0, 40.0, 181.0, 161.0], [0.0, 0.0, 20.0, 20.0]])
    source = LabelledImage("x", pixels, boxes, np.array([2, 0]), Outlines.of([[polygon], None]))
    empty = Targets(np.empty((0, 4)), np.empty(0, dtype=np.int64))
    num_pasted = 0
    for seed in range(40):
        image = np.full((SIDE, SIDE, 3), 114, dtype=np.uint8)
        targets = paste_objects(image, empty, [source], generator(seed))
        num_pasted += len(targets.boxes)
        assert set(targets.classes.tolist()) <= {2}
        covered = np.zeros((SIDE, SIDE), dtype=bool)
        for x1, y1, x2, y2 in targets.boxes.astype(int):
            assert 10 < x2 - x1 <= SIDE and 10 < y2 - y1 <= SIDE
            covered[y1:y2, x1:x2] = True
        assert not ((image[:, :, 0] != 114) & ~covered).any(), "nothing is pasted without a target"
        if len(targets.boxes) == 1:
            assert np.abs(np.array(white_extent(image)) - targets.boxes[0]).max() <= 2
    assert num_pasted > 100


def test_pasting_hides_little_and_needs_polygons() -> None:
    pixels = np.full((100, 100, 3), 255, dtype=np.uint8)
    square = [[10.0, 10.0, 90.0, 10.0, 90.0, 90.0, 10.0, 90.0]]
    source = LabelledImage("x", pixels, np.array([[10.0, 10.0, 90.0, 90.0]]), np.array([1]), Outlines.of([square]))
    everywhere = Targets(np.array([[0.0, 0.0, SIDE, SIDE]]), np.array([0]))
    for seed in range(20):
        image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        targets = paste_objects(image, everywhere, [source], generator(seed))
        for box in targets.boxes[1:]:
            assert (box[2] - box[0]) * (box[3] - box[1]) < 0.3 * SIDE * SIDE
        image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        assert paste_objects(image, everywhere, [labelled(90, 90, [[1, 1, 80, 80]])], generator(seed)) is everywhere
        assert not image.any()
