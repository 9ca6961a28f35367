"""Which detections are drawn, and with what colour."""

import numpy as np

from tde_det.visualization import draw_comparison, draw_objects, select_readable
from tde_det.visualization.draw import FREQUENCY_COLORS


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


def test_colours_tell_frequencies_apart():
    image = np.zeros((480, 480, 3), np.uint8)
    pixels = {}
    for frequency in "rcf":
        categories = {1: {"name": "x", "frequency": frequency}}
        square = [[100, 100, 300, 100, 300, 300, 100, 300]]
        objects = [{"bbox": [100, 100, 200, 200], "category_id": 1, "segmentation": square}]
        drawn = draw_objects(image, objects, categories)
        pixels[frequency] = drawn[250, 250].astype(float)
        direction = np.array(FREQUENCY_COLORS[frequency])
        cosine = pixels[frequency] @ direction / np.linalg.norm(pixels[frequency])
        assert cosine / np.linalg.norm(direction) > 0.98
    assert not image.any(), "the input was changed"


def test_panels():
    image = np.full((50, 70, 3), 90, np.uint8)
    categories = {5: {"name": "thing", "frequency": "r"}}
    found = [{"bbox": [5, 5, 20, 20], "category_id": 5, "score": 0.5}]
    both = draw_comparison(image, [], found, categories)
    alone = draw_comparison(image, None, found, categories)
    assert both.shape[0] == alone.shape[0] == 480 + 26
    assert both.shape[1] == 2 * alone.shape[1]
    assert not np.array_equal(both[26:, : alone.shape[1]], both[26:, alone.shape[1] :])
