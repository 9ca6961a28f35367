"""Draw objects with masks, boxes and names, coloured by how rare their class is in training."""

from typing import Any, Dict, List, Optional, Sequence

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer

# Colour-blind safe (Okabe and Ito), RGB in [0, 1].
FREQUENCY_COLORS = {"r": (0.84, 0.37, 0.0), "c": (0.0, 0.62, 0.45), "f": (0.0, 0.45, 0.70)}
FREQUENCY_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
_OTHER_COLOR = (0.8, 0.47, 0.65)  # a class whose frequency is not known
_SHORT_SIDE = 480  # smaller pictures are enlarged, or their labels would cover them
_LONG_SIDE = 16_000  # longer ones are not, or made smaller: matplotlib and JPEG end at 65,000
_BAR = 26  # height of the caption, in pixels


def draw_objects(
    image: np.ndarray,
    objects: Sequence[Dict[str, Any]],
    categories: Dict[int, Dict[str, Any]],
) -> np.ndarray:
    """Draw annotations or detections of one image.

    Args:
        image: ``uint8[H, W, 3]`` RGB.
        objects: LVIS-format dicts with ``bbox``, ``category_id`` and, if they have one,
            ``segmentation`` and ``score``.
        categories: by id, with ``name`` and ``frequency``.

    Returns:
        ``uint8[H', W', 3]`` RGB, enlarged to a short side of at least 480 pixels, if the long
        one then has at most 16,000.
    """
    short, long = sorted(image.shape[:2])
    scale = min(max(1.0, _SHORT_SIDE / short), _LONG_SIDE / long)
    visualizer = Visualizer(image, scale=scale)
    if not objects:
        return visualizer.get_output().get_image()
    boxes = np.array([obj["bbox"] for obj in objects], float)
    boxes[:, 2:] += boxes[:, :2]
    masks = [obj.get("segmentation") for obj in objects]
    labels, colors = [], []
    for obj in objects:
        category = categories[obj["category_id"]]
        score = f" {100 * obj['score']:.0f}%" if "score" in obj else ""
        labels.append(category["name"] + score)
        colors.append(FREQUENCY_COLORS.get(category.get("frequency", ""), _OTHER_COLOR))
    output = visualizer.overlay_instances(
        boxes=boxes,
        masks=masks if all(masks) else None,
        labels=labels,
        assigned_colors=colors,
        alpha=0.45,
    )
    return output.get_image()


def _caption(width: int, text: str, legend: bool) -> np.ndarray:
    """A dark bar with a title and, if asked for, what the colours mean."""
    bar = np.full((_BAR, width, 3), 32, np.uint8)
    font, x = cv2.FONT_HERSHEY_SIMPLEX, 8
    words = [(text, np.ones(3))]
    if legend:  # lighter than in the picture: text is thinner than a mask
        words += [
            (FREQUENCY_NAMES[k], 0.5 + 0.5 * np.array(c)) for k, c in FREQUENCY_COLORS.items()
        ]
    for word, color in words:
        cv2.putText(bar, word, (x, 18), font, 0.5, (255 * color).tolist(), 1, cv2.LINE_AA)
        x += cv2.getTextSize(word, font, 0.5, 1)[0][0] + 12
    return bar


def draw_comparison(
    image: np.ndarray,
    annotations: Optional[List[Dict[str, Any]]],
    detections: List[Dict[str, Any]],
    categories: Dict[int, Dict[str, Any]],
) -> np.ndarray:
    """Ground truth on the left, predictions on the right; predictions alone without the former.

    Args and result as for :func:`draw_objects`.
    """
    columns = []
    for title, objects in (("ground truth", annotations), ("predictions", detections)):
        if objects is not None:
            panel = draw_objects(image, objects, categories)
            caption = _caption(panel.shape[1], title, legend=title == "predictions")
            columns.append(np.vstack([caption, panel]))
    return np.hstack(columns)
