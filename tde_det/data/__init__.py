"""Data: LVIS-format files, their registration with Detectron2, and the embedded mini_lvis."""

from .custom_sets import register_custom_sets, register_lvis_json
from .loader import build_test_loader, build_train_loader
from .mapper import TolerantMapper

__all__ = [
    "TolerantMapper",
    "build_test_loader",
    "build_train_loader",
    "register_custom_sets",
    "register_lvis_json",
]
