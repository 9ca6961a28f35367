"""tde_det: long-tailed detection and instance segmentation on Detectron2."""

from importlib.util import find_spec

if find_spec("detectron2") is None:
    raise ImportError(
        "tde_det needs Detectron2, which PyPI does not carry: run `make` targets of this "
        "repository, or `pip install --no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2@"
        "02b5c4e295e990042a714712c21dc79b731e8833`"
    )

from . import roi_heads  # noqa: F401  (registers the ROI heads)
from .box_predictor import TDEOutputLayers
from .causal_norm import CausalNormClassifier
from .config import add_tde_config

__version__ = "0.1.0"
__all__ = ["CausalNormClassifier", "TDEOutputLayers", "add_tde_config"]
