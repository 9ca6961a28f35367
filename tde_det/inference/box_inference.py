"""From class scores to detections, without running NMS on every (box, class) pair."""

from typing import List, Tuple

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms, nms

# NMS starts with this many pairs for each detection wanted, and takes 4 times more until they do.
GROWTH = 4
# With more than 1,000 boxes on a CPU, `batched_nms` goes class by class, as it does with all pairs.
FEWEST_PAIRS = 1200


def highest(scores: Tensor, above: Tensor, candidates: Tensor, size: int) -> Tensor:
    """Where ``scores`` is among the ``size`` highest of ``candidates``, which are those ``above``."""
    if size >= candidates.shape[0]:
        return above
    return scores >= candidates.topk(size)[0][-1]  # all pairs of the lowest score


def nms_in_classes(boxes: Tensor, scores: Tensor, classes: Tensor, nms_thresh: float) -> Tensor:
    """``batched_nms`` in a form that ONNX knows, for any number of pairs exact like its exact one.

    Returns:
        which pairs are kept, ``Tensor[R]``, best first.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for one in torch.unique(classes):
        of_class = (classes == one).nonzero()[:, 0]
        best = nms(boxes[of_class], scores[of_class], nms_thresh).to(torch.int64)
        kept[of_class[best]] = True
    rows = kept.nonzero()[:, 0]
    return rows[scores[rows].sort(descending=True)[1]]


def kept_pairs(
    boxes: Tensor, scores: Tensor, selected: Tensor, limit: Tensor, nms_thresh: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """What NMS keeps of the pairs where ``selected``; as :func:`top_detections` returns them."""
    pairs, chosen_scores = selected.nonzero(), scores[selected]
    rows, classes = pairs[:, 0], pairs[:, 1]
    chosen = boxes[rows, classes.clamp(max=boxes.shape[1] - 1)]  # of the class, or of all classes
    chosen = torch.minimum(chosen.clamp(min=0), limit)
    if torch.jit.is_scripting():
        keep = nms_in_classes(chosen, chosen_scores, classes, nms_thresh)
    else:
        keep = batched_nms(chosen, chosen_scores, classes, nms_thresh)
    return chosen[keep], chosen_scores[keep], classes[keep], rows[keep]


@torch.jit.script_if_tracing  # since a trace repeats the decisions of the image it was made with
def top_pairs(
    boxes: Tensor,
    scores: Tensor,
    limit: Tensor,
    score_thresh: float,
    nms_thresh: float,
    topk: int,
    size: int,
    growth: int,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`top_detections`, in what TorchScript and ONNX know of Python.

    Args:
        limit: ``Tensor[4]``, the image's width, height, width, height.
        size: NMS starts with so many pairs, and takes ``growth`` times more until they suffice.
    """
    valid = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if not bool(valid.all()):
        boxes, scores = boxes[valid], scores[valid]
    scores, boxes = scores[:, :-1], boxes.reshape(boxes.shape[0], boxes.shape[1] // 4, 4)
    above = scores > score_thresh
    candidates = scores[above]
    if topk < 0:
        size = topk = candidates.shape[0]
    found = kept_pairs(boxes, scores, highest(scores, above, candidates, size), limit, nms_thresh)
    while found[0].shape[0] < topk and size < candidates.shape[0]:
        size *= growth
        selected = highest(scores, above, candidates, size)
        found = kept_pairs(boxes, scores, selected, limit, nms_thresh)
    return found[0][:topk], found[1][:topk], found[2][:topk], found[3][:topk]


def top_detections(
    boxes: Tensor,
    scores: Tensor,
    image_shape: Tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best detections of one image, after NMS within each class.

    Equal to Detectron2's ``fast_rcnn_inference``, except for the order of exactly equal scores, the
    choice among them where ``topk`` ends, and, on a GPU, IoUs within rounding of ``nms_thresh``.

    LVIS has 10⁵ to 10⁶ pairs above the score threshold for 300 detections. Whether NMS keeps a pair
    depends on pairs of higher scores alone. So it runs on the highest scores, and on more of them
    if too few pairs survive.

    Args:
        boxes: ``Tensor[N, 4]``, or ``Tensor[N, C*4]`` for class-specific boxes; x1, y1, x2, y2 in
            pixels.
        scores: ``Tensor[N, C+1]`` probabilities, background last.
        image_shape: height, width; boxes are clipped to it.
        score_thresh: only scores above it count.
        nms_thresh: IoU above which the lower-scored box of the same class is dropped.
        topk: how many to return at most; all if negative.

    Returns:
        boxes ``Tensor[R, 4]``, scores, classes and the rows they come from, ``Tensor[R]`` each,
        best first. As in Detectron2, rows with a non-finite number do not count as rows.
    """
    height, width = image_shape  # tensors in a trace
    limit = torch.cat([boxes.new_ones(1) * side for side in (width, height, width, height)])
    size = max(GROWTH * topk, FEWEST_PAIRS)
    found = top_pairs(boxes, scores, limit, score_thresh, nms_thresh, topk, size, GROWTH)
    if not torch.jit.is_tracing():
        return found
    # ONNX export takes the number of detections for a constant, but not what nonzero() returns.
    every = (found[1] > -1).nonzero()[:, 0]
    return found[0][every], found[1][every], found[2][every], found[3][every]


def box_inference(
    boxes: List[Tensor],
    scores: List[Tensor],
    image_shapes: List[Tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> Tuple[List[Instances], List[Tensor]]:
    """``fast_rcnn_inference``, with the same arguments and the same result, in less time."""
    if torch.jit.is_scripting():  # which cannot make Instances as we do
        return fast_rcnn_inference(
            boxes, scores, image_shapes, score_thresh, nms_thresh, topk_per_image
        )
    instances, rows = [], []
    for boxes_i, scores_i, shape in zip(boxes, scores, image_shapes):
        top = top_detections(boxes_i, scores_i, shape, score_thresh, nms_thresh, topk_per_image)
        instances.append(
            Instances(shape, pred_boxes=Boxes(top[0]), scores=top[1], pred_classes=top[2])
        )
        rows.append(top[3])
    return instances, rows
