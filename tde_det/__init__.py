"""tde_det: long-tailed detection and instance segmentation on Detectron2."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

if find_spec("detectron2") is None:
    raise ImportError(
        "tde_det needs Detectron2, which PyPI does not carry: run `make` targets of this "
        "repository, or `pip install --no-build-isolation "
        "git+https://github.com/facebookresearch/detectron2@"
        "02b5c4e295e990042a714712c21dc79b731e8833`"
    )

__version__ = "0.1.0"
__all__ = ["TDE", "CausalNormClassifier", "TDEOutputLayers", "add_tde_config"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: PyTorch alone takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(".modeling", __name__)  # registers the ROI heads
    place = {
        "TDE": "adjustments",
        "CausalNormClassifier": "classifiers",
        "add_tde_config": "config",
    }
    return getattr(import_module(f".{place.get(name, 'modeling')}", __name__), name)
