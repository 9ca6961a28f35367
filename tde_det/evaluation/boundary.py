"""Boundary IoU of Cheng et al., 2021, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation" (https://arxiv.org/abs/2103.16562), as their boundary-iou-api computes it.

Only the area ranges are lvis-api's, which include their upper ends.
"""

from typing import Any, Dict, Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util

DILATION_RATIO = 0.02  # width of the boundary as a part of the image's diagonal


def mask_boundary(rle: Dict[str, Any]) -> Dict[str, Any]:
    """The pixels of a mask, as RLE, that are nearer than the boundary's width to its outside.

    What lies beyond the image is outside. Distances are Chebyshev's.
    """
    width = max(1, int(round(DILATION_RATIO * np.hypot(*rle["size"]))))
    mask = mask_util.decode(rle)
    # Only the mask's box matters, and a border of one pixel outside.
    x, y, w, h = (int(v) for v in mask_util.toBbox(rle))
    box = mask[y : y + h, x : x + w]
    padded = cv2.copyMakeBorder(box, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    box -= cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask_util.encode(mask)


def boundary_iou(
    detections: Sequence[Dict[str, Any]],
    annotations: Sequence[Dict[str, Any]],
    mask_ious: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """The lesser of mask IoU and boundary IoU, ``[detections, annotations]``.

    Args:
        detections, annotations: masks as RLE.
        mask_ious: their IoU, ``[detections, annotations]``.
        threshold: below this mask IoU, boundaries make no difference and are left out.
    """
    ious = mask_ious.copy()
    rows, columns = (np.flatnonzero((ious >= threshold).any(axis=a)).tolist() for a in (1, 0))
    if rows:
        dt, gt = [detections[i] for i in rows], [annotations[i] for i in columns]
        edges: Any = [[mask_boundary(rle) for rle in rles] for rles in (dt, gt)]
        pairs = np.ix_(rows, columns)
        ious[pairs] = np.minimum(ious[pairs], mask_util.iou(*edges, [0] * len(gt)))
    return ious
