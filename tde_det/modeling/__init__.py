"""The method inside Detectron2: its box predictor, its ROI heads, and how a config builds them."""

from . import timm_backbone as _timm_backbone  # noqa: F401 registers its builders
from .box_predictor import TDEOutputLayers, box_predictors, needed_box_predictors
from .detector import build_detector
from .roi_heads import TDECascadeROIHeads, TDEStandardROIHeads

__all__ = [
    "TDECascadeROIHeads",
    "TDEOutputLayers",
    "TDEStandardROIHeads",
    "box_predictors",
    "build_detector",
    "needed_box_predictors",
]
