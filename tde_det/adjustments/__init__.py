"""Adjust: at inference, features and logits → other logits. Plain PyTorch, without Detectron2."""

from .base import Adjustment
from .chain import (
    ADJUSTMENTS,
    Adjustments,
    Step,
    make_adjustment,
    parse_chains,
    statistics_of,
)
from .exempt import exempt_background
from .fracal import FRACAL
from .logit_adjustment import LogitAdjustment
from .ncm import NCM
from .norcal import NorCal
from .prototypes import Prototypes
from .saved import saved_adjustments, take_saved
from .tau_norm import TauNorm
from .tde import TDE

__all__ = [
    "ADJUSTMENTS",
    "FRACAL",
    "NCM",
    "TDE",
    "Adjustment",
    "Adjustments",
    "LogitAdjustment",
    "NorCal",
    "Prototypes",
    "Step",
    "TauNorm",
    "exempt_background",
    "make_adjustment",
    "parse_chains",
    "saved_adjustments",
    "statistics_of",
    "take_saved",
]
