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
    """Where scores are among the ``size`` highest of the candidates, which are those ``above``."""
    if size >= candidates.shape[0]:
        return above
    return scores >= candidates.topk(size)[0][-1]  # all pairs of the lowest score


def boxes_of(boxes: Tensor, rows: Tensor, classes: Tensor, limit: Tensor) -> Tensor:
    """The clipped boxes of pairs, ``Tensor[P, 4]``."""
    chosen = boxes[rows, classes.clamp(max=boxes.shape[1] - 1)]  # of its class, or of all classes
    return torch.minimum(chosen.clamp(min=0), limit)


def kept_by_nms(
    boxes: Tensor, scores: Tensor, selected: Tensor, limit: Tensor, nms_thresh: float
) -> Tensor:
    """Which of the pairs where ``selected`` NMS within each class keeps, ``Tensor[N, C]``."""
    pairs, kept = selected.nonzero(), torch.zeros_like(selected)
    rows, classes = pairs[:, 0], pairs[:, 1]
    chosen, chosen_scores = boxes_of(boxes, rows, classes, limit), scores[selected]
    if torch.jit.is_scripting():  # ONNX does not know the exact form of `batched_nms`
        for one in torch.unique(classes):
            same = (classes == one).nonzero()[:, 0]
            best = same[nms(chosen[same], chosen_scores[same], nms_thresh).to(torch.int64)]
            kept[rows[best], classes[best]] = True
    else:
        best = batched_nms(chosen, chosen_scores, classes, nms_thresh)
        kept[rows[best], classes[best]] = True
    return kept


@torch.jit.script_if_tracing  # since a trace repeats the decisions of the image it is made with
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
    scores, boxes = scores[:, :-1], boxes.reshape(-1, boxes.shape[1] // 4, 4)
    above = scores > score_thresh
    candidates = scores[above]
    if topk < 0:
        size = topk = candidates.shape[0]
    # A loop of ONNX may change a mask, but not a tensor's size.
    kept = kept_by_nms(boxes, scores, highest(scores, above, candidates, size), limit, nms_thresh)
    while int(kept.sum()) < topk and size < candidates.shape[0]:
        size *= growth
        selected = highest(scores, above, candidates, size)
        kept = kept_by_nms(boxes, scores, selected, limit, nms_thresh)
    if torch.jit.is_scripting():
        order = scores[kept].sort(descending=True)[1][:topk]
    else:  # equal scores in the order in which NMS has them
        order = scores[kept].sort(descending=True, stable=True)[1][:topk]
    pairs = kept.nonzero()[order]
    rows, classes = pairs[:, 0], pairs[:, 1]
    return boxes_of(boxes, rows, classes, limit), scores[kept][order], classes, rows


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
    return top_pairs(boxes, scores, limit, score_thresh, nms_thresh, topk, size, GROWTH)


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
