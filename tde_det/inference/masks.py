"""From mask probabilities to run lengths, without full-size masks in between.

Detectron2 samples each M×M mask bilinearly over its box (``grid_sample``), thresholds, pastes the
result into an image-sized mask, and has pycocotools encode that. Here, no pixel outside the box is
touched, and all masks of an image are encoded together. Two things make it fast and keep it exact:

- Bilinear sampling is separable: two small matrix products, X·mask·Yᵀ. They round otherwise than
  ``grid_sample`` does, which matters only next to the threshold; pixels that near are sampled
  again, by ``grid_sample`` itself.
- Run lengths are the distances between the places where a column-major mask changes, and their
  text form is a vectorised base 32.

Every byte equals what Detectron2's ``paste_masks_in_image`` and ``pycocotools.mask.encode`` give.
"""

from typing import Dict, List, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Pixels of boxes held at once; a mask larger than this is held alone.
_PIXELS = 1 << 23
# Two float32 ways to sample differ by less than this, in units of the largest mask value.
_TOLERANCE = 1e-4


def encode_masks(
    masks: Tensor, boxes: Tensor, image_shape: Tuple[int, int], threshold: float = 0.5
) -> List[Dict]:
    """Paste masks into the image and encode them as COCO's compressed RLE.

    Args:
        masks: ``Tensor[N, M, M]`` probabilities.
        boxes: ``Tensor[N, 4]`` x1, y1, x2, y2 in pixels, where each mask goes; taken in float32, as
            Detectron2's ``Boxes`` are.
        image_shape: height, width.
        threshold: probability in [0, 1] from which a pixel belongs to the object.

    Returns:
        per mask ``{"size": [height, width], "counts": str}``.
    """
    height, width = image_shape
    if len(masks) == 0:
        return []
    boxes = boxes.detach().float()
    corners = boxes.cpu().numpy()
    limits = np.array([width, height])
    # As Detectron2 pastes on a CPU: one pixel more than the box on every side.
    low = np.maximum(np.floor(corners[:, :2]) - 1, 0).astype(np.int64)
    high = np.minimum(np.ceil(corners[:, 2:]) + 1, limits).astype(np.int64)
    high = np.maximum(low, high)

    encoded: List[bytes] = []
    pixels = np.cumsum((high - low).prod(axis=1))
    for chunk in np.split(np.arange(len(masks)), np.flatnonzero(np.diff(pixels // _PIXELS)) + 1):
        inside, offsets = _paste(
            masks.detach()[chunk], corners[chunk], low[chunk], high[chunk], threshold
        )
        starts, ends, counts = _runs(inside, offsets, low[chunk], high[chunk], height)
        encoded += _encode_runs(starts, ends, counts, height * width)
    return [{"size": [height, width], "counts": text.decode()} for text in encoded]


def _paste(
    masks: Tensor, corners: np.ndarray, low: np.ndarray, high: np.ndarray, threshold: float
) -> Tuple[np.ndarray, np.ndarray]:
    """Thresholded masks over their boxes, each column-major and every column ended by a False.

    Returns:
        all of them in one flat array, after one False, and the N+1 places where each begins.
    """
    size = masks.shape[-1]
    sizes = high - low
    offsets = np.concatenate([[0], np.cumsum(sizes[:, 0] * (sizes[:, 1] + 1))]) + 1
    inside = np.zeros(offsets[-1], bool)
    values = masks.cpu().float().numpy()
    # Other types round the sampling grid too, and what is not finite spreads in a product.
    by_product = np.isfinite(values).all(axis=(1, 2)) & (masks.dtype == torch.float32)
    tolerance = _TOLERANCE * np.maximum(1, np.abs(values).max(axis=(1, 2)))
    grid = np.arange(size, dtype=np.float32)
    again: List[Tuple[int, np.ndarray, np.ndarray]] = []
    for i, (value, corner) in enumerate(zip(values, corners)):
        axes = []
        for axis in (0, 1):
            centers = np.arange(low[i, axis], high[i, axis], dtype=np.float32) + np.float32(0.5)
            extent = corner[axis + 2] - corner[axis]
            axes.append((centers - corner[axis]) / extent * np.float32(2) - np.float32(1))
        place = inside[offsets[i] : offsets[i + 1]].reshape(sizes[i, 0], sizes[i, 1] + 1)[:, :-1]
        if by_product[i]:
            x, y = (
                np.maximum(0, 1 - np.abs(((a[:, None] + 1) * size - 1) / 2 - grid)) for a in axes
            )
            sampled = x @ value.T @ y.T
            np.greater_equal(sampled, threshold, out=place)
            sampled -= threshold
            near = np.flatnonzero(np.abs(sampled, out=sampled) < tolerance[i])
            columns, rows = np.divmod(near, max(1, sizes[i, 1]))
        else:
            columns, rows = np.indices(place.shape).reshape(2, -1)
        if len(columns):
            points = np.stack([axes[0][columns], axes[1][rows]], axis=1)
            again.append((i, points, offsets[i] + columns * (sizes[i, 1] + 1) + rows))
    if again:
        _sample_again(masks, again, threshold, inside)
    return inside, offsets


def _sample_again(
    masks: Tensor,
    again: List[Tuple[int, np.ndarray, np.ndarray]],
    threshold: float,
    inside: np.ndarray,
) -> None:
    """Decide single pixels as ``grid_sample`` has them: (mask, points in [-1, 1], places)."""
    which = [i for i, _, _ in again]
    grid = np.zeros((len(again), 1, max(len(points) for _, points, _ in again), 2), np.float32)
    for g, (_, points, _) in zip(grid, again):
        g[0, : len(points)] = points
    chosen = masks[which, None]
    if not chosen.dtype.is_floating_point:
        chosen = chosen.float()
    sampled = F.grid_sample(
        chosen, torch.from_numpy(grid).to(chosen.device, chosen.dtype), align_corners=False
    )
    decided = (sampled[:, 0, 0] >= threshold).cpu().numpy()
    for row, (_, points, places) in zip(decided, again):
        inside[places] = row[: len(points)]


def _runs(
    inside: np.ndarray, offsets: np.ndarray, low: np.ndarray, high: np.ndarray, height: int
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where runs start and end in the image's column-major order, and how many each mask has."""
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    which = np.searchsorted(offsets, changes, side="right") - 1
    column, row = np.divmod(changes - offsets[which], (high - low)[which, 1] + 1)
    positions = (low[which, 0] + column) * height + low[which, 1] + row
    starts, ends, which = positions[::2], positions[1::2], which[::2]
    # Where a column ends at the bottom and the next begins at the top, the run goes on.
    goes_on = (ends[:-1] == starts[1:]) & (which[:-1] == which[1:])
    first, last = np.append(True, ~goes_on), np.append(~goes_on, True)
    if not len(starts):
        return starts, ends, np.zeros(len(low), np.int64)
    return starts[first], ends[last], np.bincount(which[first], minlength=len(low))


def _encode_runs(
    starts: np.ndarray, ends: np.ndarray, counts: np.ndarray, total: int
) -> List[bytes]:
    """COCO's compressed counts of masks given by runs: ``rleToString`` of pycocotools' maskApi.c.

    Args:
        starts: of all runs of all masks.
        ends: of the same; one past the last pixel.
        counts: runs of each mask.
        total: pixels of the image.
    """
    # Per mask: 0, start, end, start, end, …, total.
    begin = np.concatenate([[0], np.cumsum(2 * counts + 2)])
    edges = np.empty(begin[-1], np.int64)
    edges[begin[:-1]], edges[begin[1:] - 1] = 0, total
    is_run = np.ones(len(edges), bool)
    is_run[begin[:-1]] = is_run[begin[1:] - 1] = False
    edges[is_run] = np.stack([starts, ends], axis=1).reshape(-1)
    lengths = np.diff(edges)
    # Between two masks lies no run, nor after a run that ends the image.
    keep = np.ones(len(lengths), bool)
    keep[begin[1:-1] - 1] = False
    last = begin[1:] - 2
    keep[last] &= (lengths[last] > 0) | (counts == 0)
    owner = np.repeat(np.arange(len(counts)), np.diff(begin))[:-1][keep]
    lengths = lengths[keep]
    number = np.arange(len(lengths)) - np.searchsorted(owner, np.arange(len(counts)))[owner]

    # From the fourth count on, the difference to the one before the last.
    value = lengths.copy()
    delta = np.flatnonzero(number > 2)
    value[delta] -= lengths[delta - 2]
    digits, used = [], []
    more = np.ones(len(value), bool)
    while more.any():
        used.append(more)
        digit = value & 31
        value = value >> 5
        more = more & np.where(digit & 16, value != -1, value != 0)
        digits.append((digit + 48 + 32 * more).astype(np.uint8))
    text = np.stack(digits, axis=1)[np.stack(used, axis=1)].tobytes()
    size = np.bincount(owner, weights=np.sum(used, axis=0), minlength=len(counts))
    stops = np.cumsum(size).astype(int).tolist()
    return [text[a:b] for a, b in zip([0, *stops], stops)]
