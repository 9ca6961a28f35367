"""Outlines of masks in a picture larger than the image that they were found in."""

from typing import Any, List

import cv2
import numpy as np
import pycocotools.mask as mask_util


def outlines(segmentation: Any, scale: float) -> List[np.ndarray]:
    """The outline of a mask, smooth at any scale; holes run the other way round.

    A mask of pixels is enlarged bilinearly and cut at one half, so its edge is no staircase.

    Args:
        segmentation: polygons ``[[x1, y1, …], …]``, or a compressed RLE of the image's size.
        scale: pixels of the picture per pixel of the image.

    Returns:
        closed lines, each ``float[P, 2]`` x, y in pixels of the picture.
    """
    if isinstance(segmentation, list):
        return [scale * np.asarray(polygon, float).reshape(-1, 2) for polygon in segmentation]
    x, y, width, height = mask_util.toBbox(segmentation).astype(int)
    if width == 0 or height == 0:
        return []
    mask = mask_util.decode(segmentation)[y : y + height, x : x + width]
    mask = np.pad(mask, 1).astype(np.float32)  # a mask at the image's border ends there, too
    size = [max(1, round(scale * n)) for n in mask.shape[::-1]]
    larger = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)
    if scale > 1:
        larger = cv2.GaussianBlur(larger, (0, 0), scale / 2)
    found, _ = cv2.findContours(
        (larger > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    corner = scale * np.array([x - 1, y - 1]) + 0.5
    return [line[:, 0] + corner for line in found if len(line) > 2]
