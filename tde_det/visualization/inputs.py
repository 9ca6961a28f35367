"""The image and video files that a tool is given."""

import os
from typing import Iterator, Sequence

from ..errors import InputError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_files(inputs: Sequence[str]) -> Iterator[str]:
    """All files named, and the images in all folders named.

    Raises:
        InputError: one does not exist, or a folder has no images.
    """
    for path in inputs:
        if os.path.isdir(path):
            names = [n for n in sorted(os.listdir(path)) if n.lower().endswith(IMAGES)]
            if not names:
                raise InputError(f"--input {path} holds no images ({', '.join(IMAGES)})")
            yield from (os.path.join(path, name) for name in names)
        elif os.path.isfile(path):
            yield path
        else:
            raise InputError(f"--input {path} does not exist")
