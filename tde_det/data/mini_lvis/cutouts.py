"""The RGBA cutouts that mini_lvis scenes are composed from: several drawings of 1,203 classes."""

import functools
import json
from pathlib import Path
from typing import List, Tuple

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
CUTOUT_SIZE = 64
MAX_DRAWINGS = 5
CLASSES_PER_ROW = 15  # of the sheet; a class's drawings lie side by side


@functools.cache
def load_cutouts() -> Tuple[List[str], List[List[np.ndarray]]]:
    """Names and drawings of all classes, in the sheet's order.

    A class has four or five drawings, each ``uint8[64, 64, 4]`` RGBA and by another artist.
    """
    counts = json.loads((ASSETS / "cutouts.json").read_text())
    sheet = np.asarray(Image.open(ASSETS / "cutouts.webp").convert("RGBA"))
    cells = sheet.reshape(-1, CUTOUT_SIZE, CLASSES_PER_ROW * MAX_DRAWINGS, CUTOUT_SIZE, 4)
    cutouts = []
    for i, count in enumerate(counts.values()):
        row, column = i // CLASSES_PER_ROW, i % CLASSES_PER_ROW * MAX_DRAWINGS
        cutouts.append([cells[row, :, column + d] for d in range(count)])
    return list(counts), cutouts
