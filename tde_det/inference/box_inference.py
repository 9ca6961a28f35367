"""From class scores to detections, without running NMS on every (box, class) pair."""

from typing import List, Tuple

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

# NMS starts with this many pairs for each detection wanted, and takes 4 times more until they do.
GROWTH = 4
# With more than 1,000 boxes on a CPU, `batched_nms` goes class by class, as it does with all pairs.
FEWEST_PAIRS = 1200


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
    valid = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    if not valid.all():
        boxes, scores = boxes[valid], scores[valid]
    scores, boxes = scores[:, :-1], boxes.reshape(len(boxes), boxes.shape[1] // 4, 4)
    above = scores > score_thresh
    candidates = scores[above]
    size = max(GROWTH * topk, FEWEST_PAIRS)
    while True:
        is_prefix = topk >= 0 and size < len(candidates)
        # A prefix has all pairs of its lowest score.
        selected = scores >= candidates.topk(size).values[-1] if is_prefix else above
        rows, classes = selected.nonzero(as_tuple=True)
        chosen = Boxes(boxes[rows, classes if boxes.shape[1] > 1 else 0])
        chosen.clip(image_shape)
        found = chosen.tensor, scores[selected], classes, rows
        keep = batched_nms(*found[:3], nms_thresh)
        if len(keep) >= topk or not is_prefix:
            keep = keep[:topk] if topk >= 0 else keep
            return found[0][keep], found[1][keep], classes[keep], rows[keep]
        size *= GROWTH


def box_inference(
    boxes: List[Tensor],
    scores: List[Tensor],
    image_shapes: List[Tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> Tuple[List[Instances], List[Tensor]]:
    """``fast_rcnn_inference``, with the same arguments and the same result, in less time."""
    # Neither a script nor a trace keeps the decisions on which we stop early.
    if torch.jit.is_scripting() or torch.jit.is_tracing():
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
