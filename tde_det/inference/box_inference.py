"""Puts :func:`top_detections` in the place of Detectron2's ``fast_rcnn_inference``."""

from types import FunctionType
from typing import List, Tuple

import torch
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .top_detections import top_detections


def box_inference(
    boxes: List[Tensor],
    scores: List[Tensor],
    image_shapes: List[Tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> Tuple[List[Instances], List[Tensor]]:
    """``fast_rcnn_inference``, with the same arguments and the same result, in less time."""
    if torch.jit.is_tracing():  # a trace keeps none of the decisions on which we stop early
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


def add_up(stages: List[Tensor]) -> Tensor:
    """``sum(stages)``, to the bit, with one new tensor in place of one for every term."""
    total = stages[0].clone() if len(stages) == 1 else stages[0] + stages[1]
    for scores in stages[2:]:
        total += scores
    return total


class OutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with :func:`box_inference`."""

    def inference(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> Tuple[List[Instances], List[Tensor]]:
        """Detections and the proposals they come from, per image."""
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        shapes = [p.image_size for p in proposals]
        settings = (self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image)
        if torch.jit.is_scripting():
            return fast_rcnn_inference(boxes, scores, shapes, *settings)
        return box_inference(boxes, scores, shapes, *settings)


class CascadeHeads(CascadeROIHeads):
    """Detectron2's cascade with :func:`box_inference`."""

    # Detectron2's own method calls `fast_rcnn_inference` by that name, directly, and averages the
    # stages with `sum`. This is the same method with other meanings of these two names, for this
    # class alone.
    _forward_box = FunctionType(
        CascadeROIHeads._forward_box.__code__,
        {
            **CascadeROIHeads._forward_box.__globals__,
            "fast_rcnn_inference": box_inference,
            "sum": add_up,
        },
        "_forward_box",
        CascadeROIHeads._forward_box.__defaults__,
    )
