"""Build a detector whose box predictors can be adjusted, those of Detectron2's own class too."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import nn

from .box_predictor import TDEOutputLayers, box_predictors
from .build import TrainingSet, errors_name, listed_adjustments
from .training_events import TrainingEvents

# A subclass that has one of these of its own makes or trains other scores: it stays as it is.
_METHODS = ("forward", "losses", "predict_boxes", "predict_probs", "inference")


def _is_stock(module: nn.Module) -> bool:
    return isinstance(module, FastRCNNOutputLayers) and all(
        getattr(type(module), name) is getattr(FastRCNNOutputLayers, name) for name in _METHODS
    )


def _converted(stock: FastRCNNOutputLayers) -> TDEOutputLayers:
    """The same weights, losses and scores, with room for adjustments."""
    transform = stock.box2box_transform
    converted = TDEOutputLayers(
        ShapeSpec(channels=stock.bbox_pred.in_features),
        box2box_transform=transform,
        num_classes=stock.num_classes,
        test_score_thresh=stock.test_score_thresh,
        test_nms_thresh=stock.test_nms_thresh,
        test_topk_per_image=stock.test_topk_per_image,
        cls_agnostic_bbox_reg=stock.bbox_pred.out_features == len(transform.weights),
        smooth_l1_beta=stock.smooth_l1_beta,
        box_reg_loss_type=stock.box_reg_loss_type,
        loss_weight=stock.loss_weight,
        use_fed_loss=stock.use_fed_loss,
        use_sigmoid_ce=stock.use_sigmoid_ce,
        get_fed_loss_cls_weights=lambda: stock.fed_loss_cls_weights,
        fed_loss_num_classes=stock.fed_loss_num_classes,
    )
    converted.load_state_dict(stock.state_dict())
    return converted.to(stock.bbox_pred.weight.device)


def convert_stock_predictors(model: nn.Module) -> None:
    """Put predictors of this package in the place of a model's ``FastRCNNOutputLayers``.

    The keys of its state dict, its losses and its scores stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_stock(child):
                parent.add_module(name, _converted(child))


def build_detector(cfg: CfgNode) -> Any:
    """Detectron2's ``build_model``, with box predictors of this package and MODEL.ADJUSTMENTS.

    Raises:
        InputError: MODEL.ADJUSTMENTS lists what does not fit the model.
    """
    model = build_model(cfg)
    convert_stock_predictors(model)
    with errors_name("MODEL.ADJUSTMENTS"):
        for predictor in box_predictors(model):
            predictor.training_events = TrainingEvents(TrainingSet(cfg).frequencies)
            predictor.takes_carried = not cfg.MODEL.ADJUSTMENTS
            for name, adjustment in listed_adjustments(
                cfg, predictor.bbox_pred.in_features
            ).items():
                if name not in predictor.adjustments:  # those of our heads have them
                    predictor.adjustments[name] = adjustment.to(model.device)
            predictor.check_all_fit(predictor.adjustments)
    return model
