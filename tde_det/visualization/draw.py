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
_BAR = 26  # height of the caption, in pixels


def _mask_of(segmentation: Any, height: int, width: int) -> Any:
    """A mask in a form that Detectron2's ``Visualizer`` takes."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}
    return segmentation


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
        ``uint8[H', W', 3]`` RGB, enlarged to a short side of at least 480 pixels.
    """
    height, width = image.shape[:2]
    visualizer = Visualizer(image, scale=max(1.0, _SHORT_SIDE / min(height, width)))
    boxes, masks, labels, colors = [], [], [], []
    for obj in objects:
        x, y, w, h = obj["bbox"]
        category = categories[obj["category_id"]]
        boxes.append([x, y, x + w, y + h])
        masks.append(_mask_of(obj.get("segmentation"), height, width))
        score = f" {100 * obj['score']:.0f}%" if "score" in obj else ""
        labels.append(category["name"] + score)
        colors.append(FREQUENCY_COLORS.get(category.get("frequency", ""), _OTHER_COLOR))
    if not objects:
        return visualizer.get_output().get_image()
    output = visualizer.overlay_instances(
        boxes=np.asarray(boxes, dtype=float),
        masks=masks if all(m for m in masks) else None,
        labels=labels,
        assigned_colors=colors,
        alpha=0.45,
    )
    return output.get_image()


def _caption(width: int, text: str, legend: bool) -> np.ndarray:
    """A dark bar with a title and, if asked for, what the colours mean."""
    bar = np.full((_BAR, width, 3), 32, np.uint8)

    def write(label: str, x: int, color: Sequence[float]) -> int:
        rgb = tuple(int(255 * c) for c in color)
        cv2.putText(bar, label, (x, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, rgb, 1, cv2.LINE_AA)
        return x + cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 12

    x = write(text, 8, (1, 1, 1))
    if legend:
        for key, name in FREQUENCY_NAMES.items():
            # Lighter than in the picture: text is thinner than a mask.
            x = write(name, x, [0.5 + 0.5 * c for c in FREQUENCY_COLORS[key]])
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
    panels = [("predictions", draw_objects(image, detections, categories))]
    if annotations is not None:
        panels.insert(0, ("ground truth", draw_objects(image, annotations, categories)))
    columns = [
        np.vstack([_caption(panel.shape[1], title, legend=title == "predictions"), panel])
        for title, panel in panels
    ]
    return np.hstack(columns)
