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
_SAMPLE = 1 << 15
# Boxes of a class, and of all, up to which all pairs are cheaper than calls of the NMS operator.
_SMALL, _FEW = 32, 5000


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
    order = scores.sort(descending=True, stable=True)[1]
    order = order[classes[order].sort(stable=True)[1]]
    boxes = boxes[order]
    counts = torch.unique_consecutive(classes[order], return_counts=True)[1]
    group = torch.arange(len(counts), device=boxes.device).repeat_interleave(counts)
    small = counts <= (_SMALL if len(boxes) <= _FEW else 1)
    keep, unsure = _nms_by_pairs(
        boxes, group, small, int(counts[small].max()) if small.any() else 1, nms_thresh
    )
    # The operator itself for classes of many boxes, where it is fast, or with an IoU so near the
    # threshold that its rounding decides.
    todo = ~small
    todo[unsure] = True
    at = todo[group].nonzero()[:, 0]
    if len(at):
        ranked = scores[order]
        keep[at] = False
        for index in at.split(counts[todo].tolist()):
            keep[index[nms(boxes[index], ranked[index], nms_thresh)]] = True
    kept = order[keep].sort().values
    return kept[scores[kept].sort(descending=True, stable=stable)[1]]


def _nms_by_pairs(
    boxes: Tensor, group: Tensor, small: Tensor, largest: int, nms_thresh: float
) -> Tuple[Tensor, Tensor]:
    """Greedy NMS within small groups of neighbours, from the IoU of every pair.

    Args:
        boxes: ``Tensor[N, 4]``, by group and best first within each.
        group: ``Tensor[N]``, 0, 1, … in order.
        small: ``Tensor[G]`` of bool, the groups to work on; boxes of others all survive.
        largest: size of the largest of them.
        nms_thresh: IoU threshold.

    Returns:
        ``Tensor[N]`` of bool, the survivors; and the groups with an IoU at the threshold.
    """
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    at = small[group].nonzero()[:, 0]
    pairs = []
    for distance in range(1, largest):
        first, second = at[:-distance], at[distance:]
        same = group[first] == group[second]
        pairs.append(torch.stack([first[same], second[same]]))
        if not pairs[-1].numel():
            break
    if not pairs:
        return keep, group[:0]
    first, second = torch.cat(pairs, dim=1)
    iou = pairwise_iou(boxes[first], boxes[second])
    unsure = group[first[(iou - nms_thresh).abs() < 1e-4]]
    over = iou > nms_thresh
    survives = keep.tolist()
    for better, worse in sorted(zip(first[over].tolist(), second[over].tolist())):
        if survives[better]:
            survives[worse] = False
    return torch.tensor(survives, dtype=torch.bool, device=boxes.device), unsure


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes with their counterparts: ``Tensor[N, 4]`` twice → ``Tensor[N]``."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = size[:, 0] * size[:, 1]
    area_a, area_b = ((v[:, 2] - v[:, 0]) * (v[:, 3] - v[:, 1]) for v in (a, b))
    return inter / (area_a + area_b - inter)
