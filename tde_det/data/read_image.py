"""Read an image file of any kind that Pillow knows."""

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from ..errors import InputError


def has_wide_pixels(image: Image.Image) -> bool:
    """Whether pixels are grey values of more than 8 bits, which Pillow clips at 255."""
    return image.mode[0] in "IF"


def _narrow(image: Image.Image) -> np.ndarray:
    """16-bit grey as ``uint8[H, W, 3]``."""
    if image.mode[:4] != "I;16" and not (image.mode == "I" and image.format == "PNG"):
        raise ValueError("pixels of 32 bits have no known range: convert it to 8 or 16 bits")
    grey = (np.asarray(image).astype(np.uint32) + 128) // 257
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def read_image(path: str, channels: str = "BGR") -> np.ndarray:
    """The image in a file, turned as its EXIF says; of an animation the first.

    Args:
        channels: ``"BGR"`` or ``"RGB"``.

    Returns:
        ``uint8[H, W, 3]``; transparency is ignored.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if has_wide_pixels(image):
                return _narrow(image)
        return detection_utils.read_image(path, channels)
    except Exception as error:  # Pillow's decoders raise many types
        raise InputError(f"{path} cannot be read as an image: {error}") from error
