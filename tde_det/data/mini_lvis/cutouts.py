"""The 1,203 RGBA cutouts that mini_lvis scenes are composed from."""

import functools
import json
from pathlib import Path
from typing import List, Tuple

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
CUTOUT_SIZE = 64
COLUMNS = 35


@functools.cache
def load_cutouts() -> Tuple[List[str], List[np.ndarray]]:
    """Names and pictures, each ``uint8[64, 64, 4]`` RGBA, of all cutouts, in the sheet's order."""
    names = json.loads((ASSETS / "cutouts.json").read_text())
    sheet = np.asarray(Image.open(ASSETS / "cutouts.webp").convert("RGBA"))
    cutouts = []
    for i in range(len(names)):
        top, left = i // COLUMNS * CUTOUT_SIZE, i % COLUMNS * CUTOUT_SIZE
        cutouts.append(sheet[top : top + CUTOUT_SIZE, left : left + CUTOUT_SIZE])
    return names, cutouts
