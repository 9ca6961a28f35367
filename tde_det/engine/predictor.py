"""Detect in one image."""

import detectron2.data.transforms as T
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from .checkpoints import load_model


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor``; a checkpoint that does not fit the config is an error.

    Calling it with an image, ``uint8[H, W, 3]`` in BGR order, gives ``{"instances": Instances}``.

    Raises:
        InputError: see :func:`load_model`.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg, self.model = cfg, load_model(cfg)
        self.input_format = cfg.INPUT.FORMAT
        short_side = cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([short_side, short_side], cfg.INPUT.MAX_SIZE_TEST)
