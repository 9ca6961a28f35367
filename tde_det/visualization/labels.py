"""Find places for labels where they hide neither other objects nor each other."""

from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

Place = Tuple[float, float]  # left, top
CELL = 4  # pixels: places are looked for on a grid of squares


def _candidates(box: np.ndarray, width: float, height: float) -> Iterator[Place]:
    """Places beside an object's box, then within it: above first, as readers expect."""
    x0, y0, x1, y1 = box
    columns = np.linspace(x0, max(x0, x1 - width), 5)
    rows = np.linspace(y0, max(y0, y1 - height), 5)
    for y in (y0 - height, y1):
        yield from ((x, y) for x in columns)
    for x in (x1, x0 - width):
        yield from ((x, y) for y in rows)
    for y in (y0 - height, y1):  # beside the corners
        yield from ((x, y) for x in (x0 - width, x1))
    if (x1 - x0) * (y1 - y0) > 4 * width * height:
        yield from ((x, y) for y in rows for x in columns)


def place_labels(
    sizes: Sequence[Tuple[float, float]],
    boxes: np.ndarray,
    covered: np.ndarray,
    picture: Tuple[int, int],
) -> List[Optional[Place]]:
    """Give every label a place beside or on its object, in the picture.

    Args:
        sizes: width and height of each label in pixels.
        boxes: ``float[N, 4]`` x1, y1, x2, y2 of its object.
        covered: ``bool[N, H', W']``: the cells of CELL × CELL pixels that each object reaches.
        picture: height and width in pixels.

    Returns:
        left and top of each label; None where every place would hide another object or label. Small
        objects choose first: they have fewer places.
    """
    objects = covered.sum(0)  # how many reach each cell
    taken = np.zeros(objects.shape, bool)
    places: List[Optional[Place]] = [None] * len(boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(areas, kind="stable").tolist():
        width, height = sizes[i]
        others = (objects - covered[i] > 0) | taken
        for x, y in _candidates(boxes[i], width, height):
            if x < 0 or y < 0 or x + width > picture[1] or y + height > picture[0]:
                continue
            rows = slice(int(y // CELL), int(np.ceil((y + height) / CELL)))
            columns = slice(int(x // CELL), int(np.ceil((x + width) / CELL)))
            if not others[rows, columns].any():
                taken[rows, columns] = True
                places[i] = (x, y)
                break
    return places
