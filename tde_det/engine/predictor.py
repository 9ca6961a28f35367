"""Detect in one image."""

from typing import Any

import detectron2.data.transforms as T
import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from ..errors import InputError
from .checkpoints import load_model


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor``; a checkpoint that does not fit the config is an error.

    Calling it with an image, ``uint8[H, W, 3]`` in BGR order, gives ``{"instances": Instances}``.

    Raises:
        InputError: see :func:`load_model`; or an image is so long that, resized, it has no pixel.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg, self.model = cfg, load_model(cfg)
        self.input_format = cfg.INPUT.FORMAT
        short_side = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([short_side, short_side], cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, original_image: np.ndarray) -> Any:
        resized = self.aug.get_transform(original_image)
        if min(getattr(resized, "new_h", 1), getattr(resized, "new_w", 1)) < 1:
            height, width = original_image.shape[:2]
            raise InputError(
                f"an image of {width}×{height} has no pixel left at INPUT.MIN_SIZE_TEST "
                f"{self.cfg.INPUT.MIN_SIZE_TEST} and MAX_SIZE_TEST {self.cfg.INPUT.MAX_SIZE_TEST}"
            )
        return super().__call__(original_image)
