"""Masks as annotations and results have them: polygons and RLE, checked and encoded."""

import math
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pycocotools.mask as mask_util

from ..errors import InputError

FARTHEST = 1_000_000  # pixels from the image's corner that a polygon may reach


def valid_rles(counts: Sequence[bytes], pixels: Any) -> np.ndarray:
    """Whether each is a compressed RLE (see COCO's maskApi.c) of so many pixels.

    Args:
        counts: of N masks.
        pixels: ``[N]``, height times width.

    Returns:
        ``bool[N]``.
    """
    lengths = np.array([len(c) for c in counts], np.int64)
    digits = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(counts)), lengths)
    is_last = digits & 32 == 0  # of the digits of a number
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    broken = lengths == 0
    broken[owner[(digits < 0) | (digits > 63)]] = True
    broken[owner[ends[ends - starts >= 12]]] = True  # beyond 64 bits
    whole = np.flatnonzero(~broken)
    broken[whole] = ~is_last[np.cumsum(lengths)[whole] - 1]
    if broken.any():
        good = np.flatnonzero(~broken).tolist()
        if good:
            broken[good] = ~valid_rles([counts[i] for i in good], np.asarray(pixels)[good])
        return ~broken
    if not len(counts):
        return ~broken

    shift = 5 * (np.arange(len(digits)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((digits & 31) << shift, starts)
    runs -= np.where(digits[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    # From the fourth on, a run is stored as its difference to the one before the last: without the
    # first, sums down the columns of a table with two.
    owner = owner[ends]
    number = np.bincount(owner)
    position = np.arange(len(runs)) - (np.cumsum(number) - number)[owner] - 1
    rows = number // 2
    first_row = np.cumsum(rows) - rows
    later = position >= 0
    place = (first_row[owner] + position // 2)[later], (position % 2)[later]
    table = np.zeros((int(rows.sum()) + 1, 2), np.int64)
    table[place] = runs[later]
    sums = np.cumsum(table, axis=0) - table  # of the rows above
    runs[later] += sums[place] - sums[first_row[owner[later]], place[1]]
    negative = np.bincount(owner, weights=runs < 0)
    return (negative == 0) & (np.bincount(owner, weights=runs) == pixels)


def check_polygons(mask: Any) -> None:
    """Refuse coordinates on which pycocotools would crash, or take all memory.

    Raises:
        InputError: saying what the mask has.
    """
    for polygon in mask if isinstance(mask, list) else ():
        if not all(map(math.isfinite, polygon)):
            raise InputError("has a segmentation with a coordinate that is not finite")
        if polygon and not -FARTHEST <= min(polygon) <= max(polygon) <= FARTHEST:
            raise InputError(f"has a segmentation with a coordinate beyond {FARTHEST:,} pixels")


def valid_polygons(polygons: List[List[float]]) -> List[List[float]]:
    """Those with at least 3 points, given as x, y, x, y, …"""
    return [p for p in polygons if len(p) >= 6 and len(p) % 2 == 0]


def encode_mask(segmentation: Any, height: int, width: int) -> Optional[Dict]:
    """Polygons or compressed RLE as one compressed RLE; None if no polygon is valid."""
    if isinstance(segmentation, dict):
        return segmentation
    polygons = valid_polygons(segmentation)
    return mask_util.merge(mask_util.frPyObjects(polygons, height, width)) if polygons else None
