"""Check that the image files of a data set are there and whole, before training starts."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Optional, Sequence

from PIL import Image

from ..errors import InputError
from .read_image import has_wide_pixels

_EXIF_ORIENTATION = 0x0112


def leads_out(root: str, path: str) -> bool:
    """Whether a path is not below a folder, as it is spelled; links may lead anywhere."""
    root = os.path.abspath(root)
    return os.path.commonpath([root, os.path.abspath(path)]) != root


def _problem_of(path: str, expected: Sequence[int]) -> Optional[str]:
    """What is wrong with one image file of the expected width and height, or None."""
    try:
        with Image.open(path) as image:
            if has_wide_pixels(image):
                return f"{path} has grey values of more than 8 bits: convert it to 8 bits"
            size = image.size
            if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:  # turned by 90°
                size = size[::-1]
            # A JPEG is decoded at 1/8 of its size: several times faster, and it reads every byte.
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except FileNotFoundError:
        return f"{path} does not exist"
    except Exception as error:  # Pillow's decoders raise many types
        return f"{path} is damaged: {error}"
    if size != tuple(expected):
        (width, height), (json_width, json_height) = size, expected
        return f"{path} is {width}×{height} pixels, but the json says {json_width}×{json_height}"
    return None


def _refuse(problems: Sequence[str], num_files: int, source: str, hint: str) -> None:
    if problems:
        shown = "\n  ".join(problems[:5])
        more = f"\n  … and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        raise InputError(
            f"{source}: {len(problems):,} of {num_files:,} image files cannot be used:\n"
            f"  {shown}{more}\n{hint}"
        )


def check_images_exist(paths: Sequence[str], source: str, hint: str) -> None:
    """Look for every image file, listing each folder once: seconds for all of LVIS.

    Raises:
        InputError: some files are missing. It calls the data set ``source`` and ends with ``hint``.
    """
    folders = {os.path.dirname(path) for path in paths}
    there = {
        os.path.join(folder, name)
        for folder in folders
        for name in (os.listdir(folder or ".") if os.path.isdir(folder or ".") else ())
    }
    missing = [f"{path} does not exist" for path in paths if path not in there]
    _refuse(missing, len(paths), source, hint)


def check_image_files(
    paths: Sequence[str], sizes: Sequence[Sequence[int]], source: str, hint: str
) -> None:
    """Decode every image file once, in threads, and compare its width and height with ``sizes``.

    Raises:
        InputError: some files are missing, damaged or of another size.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(_problem_of, paths, sizes) if problem]
    _refuse(problems, len(paths), source, hint)
