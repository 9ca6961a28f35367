"""Masks as polygons and as COCO's run lengths (RLE): checked, encoded, pasted into images."""

import math
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
from torch import Tensor

from ..errors import InputError

MAX_COORDINATE = 1_000_000  # pixels from the image's corner that a polygon may reach


def encode_masks(
    masks: Tensor, boxes: Tensor, image_shape: Tuple[int, int], threshold: float = 0.5
) -> List[Dict[str, Any]]:
    """Paste masks into an image and encode them, without image-sized masks in between.

    A pixel may differ from that of Detectron2's ``paste_masks_in_image`` if its probability is
    within rounding of the threshold, which is one in a million or less.

    Args:
        masks: ``Tensor[N, M, M]`` probabilities.
        boxes: ``Tensor[N, 4]`` x1, y1, x2, y2 in pixels, not empty, where each mask goes.
        image_shape: height, width.
        threshold: probability in [0, 1] from which a pixel belongs to the object.

    Returns:
        per mask ``{"size": [height, width], "counts": str}``.
    """
    height, width = image_shape
    runs = []
    for mask, box in zip(*(t.detach().cpu().float().numpy() for t in (masks, boxes))):
        first_column, columns = _paste_columns(mask, box, image_shape, threshold)
        pixels = columns.reshape(-1)
        # RLE counts pixels down the columns; the first run is of zeros.
        changes = np.flatnonzero(np.diff(pixels, prepend=False)) + first_column * height
        end = first_column * height + len(pixels)
        if len(changes) % 2 and end < height * width:  # the last column ends within the mask
            changes = np.append(changes, end)
        lengths = np.diff(changes, prepend=0, append=height * width)
        runs.append({"size": [height, width], "counts": lengths.tolist()})
    encoded = mask_util.frPyObjects(runs, height, width) if runs else []
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]


def _paste_columns(
    mask: np.ndarray, box: np.ndarray, image_shape: Tuple[int, int], threshold: float
) -> Tuple[int, np.ndarray]:
    """The image's columns that a mask reaches: the first one's number, and ``bool[W', H]``."""
    height, width = image_shape
    # One pixel more than the box on every side, as in Detectron2.
    low = np.maximum(np.floor(box[:2]) - 1, 0).astype(int)
    high = np.minimum(np.ceil(box[2:]) + 1, [width, height]).astype(int)
    high = np.maximum(low, high)
    x, y = (
        (np.arange(low[i], high[i]) + 0.5 - box[i]) / (box[i + 2] - box[i]) * len(mask) - 0.5
        for i in (0, 1)
    )
    columns = np.zeros((len(x), height), bool)
    columns[:, low[1] : high[1]] = _interpolate(_interpolate(mask, y).T, x) >= threshold
    return low[0], columns


def _interpolate(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation between rows, with zeros around them: ``[M, K]``, ``[N]`` → ``[N, K]``.

    Done first along y, then along x, this is the bilinear sampling of ``grid_sample``.
    """
    padded = np.pad(values, ((1, 2), (0, 0)))
    positions = np.clip(positions, -1, len(values)) + 1
    rows = positions.astype(int)
    upper = padded[rows]
    return upper + (padded[rows + 1] - upper) * (positions - rows).astype(np.float32)[:, None]


def valid_rle(counts: bytes, num_pixels: int) -> bool:
    """Whether a compressed RLE, as in COCO's maskApi.c, is one of so many pixels.

    If not, pycocotools may crash on it.
    """
    lengths: List[int] = []
    length = num_digits = 0
    for byte in counts:
        digit = byte - 48
        if not 0 <= digit < 64 or num_digits == 12:  # 13 digits are beyond 64 bits
            return False
        length |= (digit & 31) << 5 * num_digits
        num_digits += 1
        if not digit & 32:  # the last digit of a number, whose highest bit is the sign
            if digit & 16:
                length -= 1 << 5 * num_digits
            # From the fourth on, a difference to the number before the last.
            lengths.append(length + (lengths[-2] if len(lengths) > 2 else 0))
            length = num_digits = 0
    return num_digits == 0 and min(lengths, default=-1) >= 0 and sum(lengths) == num_pixels


def check_polygons(mask: Any) -> None:
    """Refuse coordinates on which pycocotools would crash, or take all memory."""
    for polygon in mask if isinstance(mask, list) else ():
        if not math.isfinite(sum(polygon)) or max(map(abs, polygon), default=0) > MAX_COORDINATE:
            raise InputError(
                "has a segmentation with a coordinate that is not finite, or beyond "
                f"{MAX_COORDINATE:,} pixels"
            )


def valid_polygons(polygons: List[List[float]]) -> List[List[float]]:
    """Those with at least 3 points, given as x, y, x, y, …"""
    return [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]


def encode_mask(segmentation: Any, height: int, width: int) -> Optional[Dict[str, Any]]:
    """Polygons or compressed RLE as one compressed RLE; None if no polygon is valid."""
    if isinstance(segmentation, dict):
        return segmentation
    polygons = valid_polygons(segmentation)
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width)) if polygons else None
