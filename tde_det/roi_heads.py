"""Detectron2's ROI heads with de-confounded box predictors, under names of their own.

The registry holds builder functions: they hand the box predictors to Detectron2's own
``CascadeROIHeads`` and ``StandardROIHeads``, which keep scripting, tracing and test-time
augmentation as they are.
"""

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads

from .box_predictor import LongTailOutputLayers, TDEOutputLayers, check_softmax_loss
from .build_loss import check_loss
from .causal_norm import CLASSIFIERS
from .errors import InputError
from .inference.box_inference import CascadeHeads


def _check_config(cfg: CfgNode) -> None:
    """Refuse what the predictors would refuse, before Detectron2's own are built to be replaced."""
    known = (*CLASSIFIERS, "linear")
    kind = cfg.MODEL.TDE.CLASSIFIER
    if kind not in known:
        raise InputError(f"MODEL.TDE.CLASSIFIER must be one of {known}, got {kind!r}")
    if kind != "linear" and cfg.MODEL.TDE.ALPHA != 0:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        check_softmax_loss(box_head.USE_SIGMOID_CE, box_head.USE_FED_LOSS)
    check_loss(cfg)


def _build_predictor(cfg: CfgNode, stock: FastRCNNOutputLayers, box_head) -> FastRCNNOutputLayers:
    """The predictor that MODEL.TDE asks for, with the box transform of ``stock``."""
    kind = LongTailOutputLayers if cfg.MODEL.TDE.CLASSIFIER == "linear" else TDEOutputLayers
    return kind(cfg, box_head.output_shape, box2box_transform=stock.box2box_transform)


@ROI_HEADS_REGISTRY.register()
def TDECascadeROIHeads(cfg: CfgNode, input_shape) -> CascadeHeads:
    """Cascade R-CNN heads; every stage has its own class weights, feature mean and α."""
    _check_config(cfg)
    args = CascadeHeads.from_config(cfg, input_shape)
    args["box_predictors"] = [
        _build_predictor(cfg, stock, head)
        for stock, head in zip(args["box_predictors"], args["box_heads"])
    ]
    return CascadeHeads(**args)


@ROI_HEADS_REGISTRY.register()
def TDEStandardROIHeads(cfg: CfgNode, input_shape) -> StandardROIHeads:
    """Faster / Mask R-CNN heads."""
    _check_config(cfg)
    args = StandardROIHeads.from_config(cfg, input_shape)
    args["box_predictor"] = _build_predictor(cfg, args["box_predictor"], args["box_head"])
    return StandardROIHeads(**args)
