"""Which detections are drawn, and with what colour."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from tde_det.visualization import draw_panels, pixels, select_readable
from tde_det.visualization.draw import FREQUENCY_COLORS
from tde_det.visualization.labels import CELL, place_labels
from tde_det.visualization.outlines import outlines


def detection(x, label, score, size=10):
    return {"bbox": [x, 0, size, size], "category_id": label, "score": score}


def test_select_by_score_class_and_overlap():
    detections = [
        detection(0, 1, 0.9),
        detection(1, 2, 0.8),  # IoU 9/11 with the first, of another class
        detection(4, 2, 0.7),  # IoU 6/14
        *[detection(20 * i, 3, 0.6 - 0.01 * i) for i in range(1, 6)],
        detection(200, 4, 0.1),
    ]
    selected = select_readable(detections, 0.3, max_per_class=2, duplicate_iou=0.7)
    assert [(d["category_id"], d["score"]) for d in selected] == [
        (1, 0.9),
        (2, 0.7),
        (3, 0.59),
        (3, 0.58),
    ]
    assert select_readable([], 0.3) == []


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


@pytest.mark.parametrize("frequency", "rcf")
def test_colours_tell_frequencies_apart(frequency):
    image = np.zeros((480, 480, 3), np.uint8)
    categories = {1: {"name": "x", "frequency": frequency}}
    objects = [
        {"bbox": [100, 100, 200, 200], "category_id": 1, "segmentation": square(100, 100, 200)}
    ]
    picture = pixels(draw_panels(image, {"a": objects}, categories))
    drawn = picture[-480:][250, 250].astype(float)
    direction = np.array(FREQUENCY_COLORS[frequency])
    assert drawn @ direction / np.linalg.norm(drawn) / np.linalg.norm(direction) > 0.98
    assert not image.any(), "the input was changed"


def test_panels():
    image = np.full((50, 70, 3), 90, np.uint8)
    categories = {5: {"name": "thing", "frequency": "r"}}
    found = [{"bbox": [5, 5, 20, 20], "category_id": 5, "score": 0.5}]
    both = pixels(draw_panels(image, {"ground truth": [], "predictions": found}, categories))
    alone = pixels(draw_panels(image, {"predictions": found}, categories))
    assert alone.shape == (480 + 26, 672, 3)
    assert both.shape == (480 + 26, 2 * 672 + 4, 3)
    assert (both[30:, :672] == 90).all(), "nothing is drawn in the first panel"
    assert np.array_equal(both[30:, -672:], alone[30:])


def test_a_long_title_ends_before_the_next_and_the_legend():
    image = np.full((50, 50, 3), 90, np.uint8)
    short = pixels(draw_panels(image, {"": [], "b": []}, {}))
    long = pixels(draw_panels(image, {"a" * 200: [], "b" * 200: []}, {}))
    changed = np.flatnonzero((short != long).any(axis=(0, 2)))
    assert changed.min() < 20 and ((changed < 480) | (changed >= 480 + 4 + 8)).all()
    assert changed.max() < 2 * 480 + 4 - 150, "the legend is as it was"


@pytest.mark.parametrize("shape", [(1, 1), (10, 20_000), (3, 500), (700, 20)])
def test_odd_sizes_stay_pictures(shape):
    categories = {1: {"name": "$x_1$"}}  # no mathematics
    objects = [{"bbox": [0, 0, shape[1], shape[0]], "category_id": 1, "score": 1.0}]
    picture = pixels(draw_panels(np.zeros((*shape, 3), np.uint8), {"a": objects}, categories))
    assert max(picture.shape) <= max(1600, *shape) + 200


def test_labels_hide_no_other_object_and_no_other_label():
    rng = np.random.default_rng(0)
    without_place = 0
    for _ in range(50):
        n, picture = int(rng.integers(1, 25)), (300, 400)
        boxes = np.empty((n, 4))
        boxes[:, :2] = rng.uniform(0, [380, 280], (n, 2))
        boxes[:, 2:] = (boxes[:, :2] + rng.uniform(5, 150, (n, 2))).clip(max=[400, 300])
        covered = np.zeros((n, 75, 100), bool)
        for cells, (x0, y0, x1, y1) in zip(covered, (boxes / CELL).astype(int)):
            cells[y0 : y1 + 1, x0 : x1 + 1] = True
        sizes = [(float(w), 18.0) for w in rng.uniform(20, 90, n)]
        places = place_labels(sizes, boxes, covered, picture)
        without_place += places.count(None)
        drawn = np.zeros((n, *picture), bool)
        for mask, place, (width, height) in zip(drawn, places, sizes):
            if place is not None:
                x, y = place
                assert x >= 0 and y >= 0 and x + width <= 400 and y + height <= 300
                mask[int(y) : int(y + height), int(x) : int(x + width)] = True
        assert drawn.sum(0).max() <= 1, "labels overlap"
        for i, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
            on_it = drawn[:, y0:y1, x0:x1].any((1, 2))
            assert not np.delete(on_it, i).any(), "another object is hidden"
    assert 0 < without_place < 400


def test_a_lone_object_has_its_label_above():
    covered = np.zeros((1, 25, 25), bool)
    covered[0, 12:18, 5:15] = True
    box = np.array([[20.0, 50, 60, 70]])
    assert place_labels([(30, 16)], box, covered, (100, 100)) == [(20, 34)]
    assert place_labels([(30, 200)], box, covered, (100, 100)) == [None]


def test_labels_without_a_place_go_below():
    image = np.zeros((480, 480, 3), np.uint8)
    whole = {"bbox": [0, 0, 480, 480], "segmentation": square(0, 0, 480)}
    objects = [{**whole, "category_id": k} for k in (1, 2, 3)]
    categories = {k: {"name": f"class {k}", "frequency": "f"} for k in (1, 2, 3)}
    picture = pixels(draw_panels(image, {"a": objects}, categories))
    assert picture.shape[0] > 26 + 480
    assert (picture[26 + 480 :] != 255).any(-1).sum() > 3 * 300  # three labels on white

    # Room for one row of labels, whatever there is to be labelled.
    without = pixels(draw_panels(image, {"a": []}, categories, room_below=0.06))
    one_row = pixels(draw_panels(image, {"a": 10 * objects}, categories, room_below=0.06))
    assert without.shape == one_row.shape == (26 + 480 + 29, 480, 3)
    below = (one_row[26 + 480 :] != 255).any(-1)
    assert below.sum() > 3 * 300 and not below[-3:].any(), "no label is cut"
    nowhere = pixels(draw_panels(image, {"a": objects}, categories, room_below=0))
    assert nowhere.shape == (26 + 480, 480, 3)


def test_outlines_are_smooth_and_in_place():
    rows, columns = np.mgrid[:64, :64] + 0.5
    disc = (rows - 30) ** 2 + (columns - 34) ** 2 < 20**2
    disc &= (rows - 30) ** 2 + (columns - 34) ** 2 > 8**2  # with a hole
    rle = mask_util.encode(np.asfortranarray(disc.astype(np.uint8)))
    scale = 8
    lines = sorted(outlines(rle, scale), key=len)
    assert len(lines) == 2
    for line, radius in zip(lines, (8, 20)):
        distance = np.hypot(*(line - scale * np.array([34, 30])).T)
        # A staircase of pixels would be up to 0.7 of a pixel off, 5.7 here.
        assert np.abs(distance - scale * radius).max() < 4
        assert np.abs(distance.mean() - scale * radius) < 2
    areas = [np.sum(x * np.roll(y, 1) - y * np.roll(x, 1)) for x, y in (line.T for line in lines)]
    assert areas[0] * areas[1] < 0, "the hole must run the other way round"
    nothing = mask_util.encode(np.zeros((5, 5), np.uint8, order="F"))
    assert outlines(nothing, 2) == []
    assert outlines([[1, 2, 3, 4, 5, 6]], 2)[0].tolist() == [[2, 4], [6, 8], [10, 12]]
