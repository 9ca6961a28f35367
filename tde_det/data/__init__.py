"""Data: LVIS-format files, their registration with Detectron2, and the embedded mini_lvis."""

from .custom_sets import register_custom_sets, register_lvis_json
from .errors import DataError
from .mapper import TolerantMapper

__all__ = ["DataError", "TolerantMapper", "register_custom_sets", "register_lvis_json"]
