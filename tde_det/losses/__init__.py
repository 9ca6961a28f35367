"""Classification losses for long-tailed data. Plain PyTorch, without Detectron2."""

from typing import Dict, Type

from .base import ClassificationLoss, CrossEntropy
from .effective_class_margin import ECM
from .equalization import EQL, EQLv2
from .federated import Federated, SoftmaxFederated
from .focal import Focal, SigmoidFocal
from .gumbel import GOL
from .ldam import LDAM
from .logit_adjustment import BalancedSoftmax, LogitAdjustment
from .reweighting import ClassBalancedCrossEntropy, ClassBalancedFocal, WeightedCrossEntropy
from .seesaw import Seesaw

LOSSES: Dict[str, Type[ClassificationLoss]] = {
    "cross_entropy": CrossEntropy,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": Focal,
    "sigmoid_focal": SigmoidFocal,
    "cb_cross_entropy": ClassBalancedCrossEntropy,
    "cb_focal": ClassBalancedFocal,
    "ldam": LDAM,
    "eql": EQL,
    "eqlv2": EQLv2,
    "seesaw": Seesaw,
    "federated": Federated,
    "softmax_federated": SoftmaxFederated,
    "balanced_softmax": BalancedSoftmax,
    "logit_adjustment": LogitAdjustment,
    "gol": GOL,
    "ecm": ECM,
}

__all__ = ["LOSSES", "ClassificationLoss"]
