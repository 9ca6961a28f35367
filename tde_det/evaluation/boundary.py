"""Boundary IoU of Cheng et al., 2021, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation" (https://arxiv.org/abs/2103.16562), as their boundary-iou-api computes it.

What is small, medium and large stays as in lvis-api, whose ranges include both ends; those of
boundary-iou-api leave out the upper one.
"""

from typing import Any, Dict, List, Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util

DILATION_RATIO = 0.02  # width of the boundary as a part of the image's diagonal


def mask_boundary(rle: Dict[str, Any]) -> Dict[str, Any]:
    """The pixels of a mask, as RLE, that are nearer than the boundary's width to its outside.

    What lies beyond the image is outside. Distances are Chebyshev's.
    """
    height, width = rle["size"]
    distance = max(1, int(round(DILATION_RATIO * np.sqrt(height**2 + width**2))))
    mask = mask_util.decode(rle)
    # Only the mask's box matters, and a border of one pixel outside.
    x, y, w, h = (int(v) for v in mask_util.toBbox(rle))
    crop = cv2.copyMakeBorder(mask[y : y + h, x : x + w], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(crop, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    mask[y : y + h, x : x + w] -= inner
    return mask_util.encode(mask)


def boundary_iou(
    detections: Sequence[Dict[str, Any]],
    annotations: Sequence[Dict[str, Any]],
    mask_ious: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """The lesser of mask IoU and boundary IoU, ``[detections, annotations]``.

    Args:
        detections: masks as RLE.
        annotations: masks as RLE.
        mask_ious: their IoU, ``[detections, annotations]``.
        threshold: below this mask IoU, boundaries make no difference and are left out.
    """
    ious = mask_ious.copy()
    rows, columns = (np.flatnonzero((ious >= threshold).any(axis=a)).tolist() for a in (1, 0))
    if len(rows):
        dt: List = [mask_boundary(detections[i]) for i in rows]
        gt: List = [mask_boundary(annotations[i]) for i in columns]
        at = np.ix_(rows, columns)
        ious[at] = np.minimum(ious[at], mask_util.iou(dt, gt, [0] * len(gt)))
    return ious
