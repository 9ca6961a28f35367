"""An image to try a model on, as the model takes it."""

from typing import Optional

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.read_image import read_image


def drawn_image(height: int = 480, width: int = 640) -> np.ndarray:
    """Rectangles of random colours on noise, always the same; ``uint8[H, W, 3]``."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 166, (height, width, 3), dtype=np.uint8)
    for _ in range(12):
        y, x = rng.integers(0, height), rng.integers(0, width)
        size = rng.integers(height // 8, height // 2, 2)
        image[y : y + size[0], x : x + size[1]] = rng.integers(0, 256, 3)
    return image


def read_sample(path: Optional[str]) -> np.ndarray:
    """A file's image, ``uint8[H, W, 3]`` BGR; without a file, :func:`drawn_image`.

    Raises:
        InputError: it cannot be read.
    """
    if path is None:
        return drawn_image()
    return read_image(path)


def resized(cfg: CfgNode, image: np.ndarray, scale: float = 1.0) -> Tensor:
    """Resize a BGR image to the test size, times a scale: ``Tensor[3, H, W]``, 0 to 255."""
    short, long = (round(scale * n) for n in (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST))
    if cfg.INPUT.FORMAT == "RGB":
        image = image[:, :, ::-1]
    image = T.ResizeShortestEdge(short, long).get_transform(image).apply_image(image)
    return torch.from_numpy(image.astype("float32").transpose(2, 0, 1).copy())
