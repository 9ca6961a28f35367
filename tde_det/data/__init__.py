"""Data: LVIS-format files, their registration with Detectron2, and the embedded mini_lvis."""

from .custom_sets import register_custom_sets, register_lvis_json
from .mapper import TolerantMapper

__all__ = ["TolerantMapper", "register_custom_sets", "register_lvis_json"]
