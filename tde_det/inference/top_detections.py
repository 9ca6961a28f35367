"""From class scores to detections, exactly as Detectron2 does it and without sorting every pair.

Detectron2's ``fast_rcnn_inference`` puts every (box, class) pair above the score threshold through
NMS, 10⁵ to 10⁶ of them for LVIS, to return 300. Whether greedy NMS keeps a box depends on
higher-scored boxes of its class alone. So we run it on the pairs above a growing prefix of the
scores, and stop as soon as enough survive: what comes after can change nothing.

What is equal to the stock function: boxes, scores, classes, indices and their order. Three rules
make it so:

- A prefix is all pairs at or above some score, so it never cuts through equal scores.
- torchvision's ``batched_nms`` has two implementations, which may disagree where an IoU is within
  rounding of the threshold: for few pairs it shifts boxes apart by class, else it goes class by
  class. We call it where it would shift, and go class by class where it would.
- Its final sort is not stable on CPUs with AVX2: equal scores come out in an order that depends on
  everything else sorted. So if scores to be returned are equal, all pairs are processed. Only
  beyond 100,000 pairs is that left out, and equal scores come by row, then class.
"""

import math
from typing import Tuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

# Pairs up to which some torchvision ≥ 0.19 shifts boxes apart; above, all of them go by class.
_SHIFTED_UP_TO = {"cpu": 1000, "cuda": 25000}
# Pairs up to which the order of equal scores is worth going through all of them.
_TIES_UP_TO = 100_000
_GROWTH = 4
_SAMPLE = 1 << 16


def top_detections(
    boxes: Tensor,
    scores: Tensor,
    image_shape: Tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best detections of one image, after NMS within each class.

    Args:
        boxes: ``Tensor[N, 4]``, or ``Tensor[N, C*4]`` for class-specific boxes; x1, y1, x2, y2 in
            pixels.
        scores: ``Tensor[N, C+1]`` probabilities, background last.
        image_shape: height, width; boxes are clipped to it.
        score_thresh: only scores above it count.
        nms_thresh: IoU above which the lower-scored box of the same class goes.
        topk: how many to return at most; all if negative.

    Returns:
        boxes ``Tensor[R, 4]``, scores ``Tensor[R]``, classes ``Tensor[R]`` and the rows they come
        from, ``Tensor[R]``, best first. As in Detectron2, rows with a non-finite number do not
        count, neither as detections nor for the row numbers.
    """
    # A finite sum has finite terms. One that is not may have overflowed: then look at each.
    if not torch.isfinite(boxes.sum() + scores.sum()):
        valid = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        boxes, scores = boxes[valid], scores[valid]
    foreground = scores[:, :-1]

    def candidates(mask: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, classes = mask.nonzero(as_tuple=True)
        if boxes.shape[1] == 4:
            chosen = boxes[rows]
        else:
            chosen = boxes.reshape(len(boxes), boxes.shape[1] // 4, 4)[rows, classes]
        height, width = image_shape
        limit = chosen.new_tensor([width, height, width, height])
        chosen = torch.minimum(chosen.clamp(min=0), limit).float()
        return chosen, foreground[rows, classes], classes, rows

    above = foreground > score_thresh
    count = int(torch.count_nonzero(above))
    if count <= _SHIFTED_UP_TO.get(scores.device.type, 0):
        found = candidates(above)
        return _take(found, batched_nms(found[0], found[1], found[2], nms_thresh)[: _stop(topk)])

    # At least as many pairs as are wanted, with room for those that NMS will suppress.
    size = _GROWTH * max(topk, 1)
    while topk >= 0 and size < count:
        bound = _score_at_rank(scores, size)
        if not bound > score_thresh:
            break
        found = candidates(foreground >= bound)
        keep = _nms_per_class(*found[:3], nms_thresh, stable=True)
        if len(keep) >= topk:
            best = found[1][keep[: topk + 1]]
            if count <= _TIES_UP_TO and (best[1:] == best[:-1]).any():
                break
            return _take(found, keep[:topk])
        size *= _GROWTH
    found = candidates(above)
    return _take(found, _nms_per_class(*found[:3], nms_thresh, stable=False)[: _stop(topk)])


def _stop(topk: int):
    return topk if topk >= 0 else None


def _take(found: Tuple[Tensor, ...], keep: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    boxes, scores, classes, rows = (values[keep] for values in found)
    return boxes, scores, classes, rows


def _score_at_rank(scores: Tensor, rank: int) -> Tensor:
    """About the ``rank``-th largest foreground score, from an evenly spaced sample."""
    width = scores.shape[1]
    step = max(1, scores.numel() // _SAMPLE)
    while math.gcd(step, width) > 1:  # else it would visit some classes only
        step += 1
    at = torch.arange(0, scores.numel(), step, device=scores.device)
    sample = scores.reshape(-1)[at[at % width != width - 1]]
    return sample.kthvalue(max(1, len(sample) + 1 - math.ceil(rank / step))).values


def _nms_per_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_thresh: float, stable: bool
) -> Tensor:
    """Indices that survive NMS within their class, best first, as torchvision's loop gives them."""
    classes, order = classes.sort(stable=True)
    counts = torch.unique_consecutive(classes, return_counts=True)[1]
    alone = counts.repeat_interleave(counts) == 1
    kept, order = [order[alone]], order[~alone]
    groups = counts[counts > 1].tolist()
    for index, *of_class in zip(*(v.split(groups) for v in (order, boxes[order], scores[order]))):
        kept.append(index[nms(*of_class, nms_thresh)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True, stable=stable)[1]]
