"""Detectron2's ROI heads with box predictors of this package, under names of their own."""

from typing import Any, Dict, List, NamedTuple, Optional

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import Instances
from torch import Tensor

from ..inference.box_inference import box_inference
from .box_predictor import Predictions, TDEOutputLayers
from .build import errors_name


class Stage(NamedTuple):
    """What a box stage computes from its proposals."""

    predictor: TDEOutputLayers
    predictions: Predictions
    proposals: List[Instances]


def run_stages(
    heads: StandardROIHeads,
    features: Dict[str, Tensor],
    proposals: List[Instances],
    targets: Optional[List[Instances]] = None,
) -> List[Stage]:
    """Run the box stages of a cascade, or the only one of plain heads.

    Args:
        targets: annotations, by which the proposals of a cascade's later stages are labelled.
    """
    levels = [features[name] for name in heads.box_in_features]
    if not isinstance(heads, CascadeROIHeads):
        x = heads.box_head(heads.box_pooler(levels, [p.proposal_boxes for p in proposals]))
        return [Stage(heads.box_predictor, heads.box_predictor(x), proposals)]
    sizes = [p.image_size for p in proposals]
    stages: List[Stage] = []
    boxes: List[Tensor] = []
    for k, predictor in enumerate(heads.box_predictor):
        if k > 0:
            proposals = heads._create_proposals_from_boxes(boxes, sizes)
            if targets is not None:
                proposals = heads._match_and_label_boxes(proposals, k, targets)
        predictions = heads._run_stage(levels, proposals, k)
        boxes = predictor.predict_boxes(predictions, proposals)
        stages.append(Stage(predictor, predictions, proposals))
    return stages


def detect(stages: List[Stage], scores: List[List[Tensor]]) -> List[Instances]:
    """Detections per image: the last stage's boxes, with the mean of all stages' scores.

    Args:
        stages: of :func:`run_stages`.
        scores: per stage and image, ``Tensor[N, C+1]``.
    """
    predictor, predictions, proposals = stages[-1]
    instances, _ = box_inference(
        predictor.predict_boxes(predictions, proposals),
        [sum(image[1:], image[0]) * (1.0 / len(stages)) for image in zip(*scores)],
        [p.image_size for p in proposals],
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image,
    )
    return instances


def _build_predictor(cfg: CfgNode, box_head: Any, stock: FastRCNNOutputLayers) -> TDEOutputLayers:
    """Our predictor in the place of Detectron2's, with its box transform."""
    with errors_name("MODEL.TDE, MODEL.LONG_TAIL or MODEL.ADJUSTMENTS"):
        transform = stock.box2box_transform
        return TDEOutputLayers(cfg, box_head.output_shape, box2box_transform=transform)


@ROI_HEADS_REGISTRY.register()
class TDECascadeROIHeads(CascadeROIHeads):
    """Cascade R-CNN heads; every stage has its own class weights, feature mean and α."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape) -> Dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        args["box_predictors"] = [
            _build_predictor(cfg, head, stock)
            for head, stock in zip(args["box_heads"], args["box_predictors"])
        ]
        return args

    def _forward_box(self, features, proposals, targets=None):
        """Detectron2's losses in training; at inference, the same detections in less time."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        stages = run_stages(self, features, proposals)
        return detect(
            stages, [s.predictor.predict_probs(s.predictions, s.proposals) for s in stages]
        )


@ROI_HEADS_REGISTRY.register()
def TDEStandardROIHeads(cfg: CfgNode, input_shape) -> StandardROIHeads:
    """Faster / Mask R-CNN heads: Detectron2's own class, since TorchScript takes no subclass."""
    args = StandardROIHeads.from_config(cfg, input_shape)
    args["box_predictor"] = _build_predictor(cfg, args["box_head"], args["box_predictor"])
    return StandardROIHeads(**args)
