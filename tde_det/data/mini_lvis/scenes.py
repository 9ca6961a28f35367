"""Compose one mini_lvis picture: cutouts that stand in a place, with exact masks."""

from typing import List, Sequence, Tuple

import cv2
import numpy as np

from ...errors import InputError
from .backgrounds import draw_background

# At least a share from this range of an object's area is in the picture, uncovered by nearer ones.
MIN_VISIBLE = (0.5, 0.95)
MIN_PIXELS = 16
MIN_SIDE = 12.0
SIDES = (0.25, 0.55)  # as shares of the picture's
MAX_TRIES = 2000
TRIES_ON_GROUND = 20  # then an object may be anywhere
MAX_TURN = 25  # degrees
MAX_BLUR = 0.7  # pixels
# Luma and chroma (YIQ) of RGB: hue and saturation are a turn and a length of the latter two.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def shift_colors(rng: np.random.Generator) -> np.ndarray:
    """A random change of brightness, saturation and hue, ``float32[3, 3]`` for rows of RGB."""
    turn = np.deg2rad(rng.normal(0, 10))
    saturation, brightness = rng.uniform(0.65, 1.25), rng.uniform(0.75, 1.15)
    cos, sin = saturation * np.cos(turn), saturation * np.sin(turn)
    change = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return (brightness * np.linalg.inv(YIQ) @ change @ YIQ).T.astype(np.float32)


def warp_cutout(
    rng: np.random.Generator, cutout: np.ndarray, side: float
) -> Tuple[np.ndarray, np.ndarray, float]:
    """Scale to ``side`` pixels, turn, mirror, shade and blur a ``uint8[64, 64, 4]`` cutout.

    Returns:
        a square patch it fits into, colour ``float32[S, S, 3]`` premultiplied by alpha and alpha
        ``float32[S, S]`` in [0, 1], and the object's area in pixels.
    """
    alpha = cutout[..., 3:].astype(np.float32) / 255
    color = np.clip(cutout[..., :3].astype(np.float32) @ shift_colors(rng), 0, 255)
    layers = np.concatenate([color * alpha, alpha], axis=2)

    scale = side / cutout.shape[0]
    mirror = -1 if rng.random() < 0.5 else 1
    turn = np.deg2rad(rng.uniform(-MAX_TURN, MAX_TURN))
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    size = int(np.ceil(1.4 * side)) + 4  # |cos| + |sin| ≤ 1.33 at 25°, and the blur
    offset = size / 2 + rng.uniform(-0.5, 0.5, 2) - linear @ np.full(2, cutout.shape[0] / 2)
    # Bilinear sampling alone would skip source pixels.
    sigma = np.hypot(0.3 if scale < 0.6 else 0, rng.uniform(0, MAX_BLUR)) / scale
    layers = cv2.GaussianBlur(layers, (0, 0), max(sigma, 0.1))
    warped = cv2.warpAffine(layers, np.column_stack([linear, offset]), (size, size))
    return warped[..., :3], warped[..., 3], float((warped[..., 3] > 0.5).sum())


def clip_patch(top: int, left: int, side: int, size: int) -> Tuple[slice, slice, Tuple]:
    """The rows and columns of a picture that a square patch covers, and what of the patch does."""
    rows = slice(max(top, 0), min(top + side, size))
    columns = slice(max(left, 0), min(left + side, size))
    inside = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    return rows, columns, inside


def cast_shadow(
    image: np.ndarray, alpha: np.ndarray, top: int, left: int, lean: float, darkness: float
) -> None:
    """Darken a picture where an object, of this alpha patch at (top, left), shades the ground.

    The shadow is the object laid down: lower, leaning sideways, and soft.
    """
    rows = np.flatnonzero((alpha > 0.5).any(axis=1))
    foot, height = float(rows[-1]), float(rows[-1] - rows[0] + 1)
    lower = 0.28
    # A point (x, y) of the patch falls on (x + lean·(foot − y), foot − lower·(foot − y)).
    laid = np.array(
        [[1, -lean, left + lean * foot], [0, lower, top + (1 - lower) * foot]], np.float64
    )
    shadow = cv2.warpAffine(alpha, laid, image.shape[1::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.6 + 0.04 * height)
    image *= 1 - darkness * shadow[..., None]


def compose_scene(
    rng: np.random.Generator, cutouts: Sequence[np.ndarray], size: int
) -> Tuple[np.ndarray, List[np.ndarray]]:
    """Draw every given ``uint8[64, 64, 4]`` cutout once, the farthest first.

    Objects stand on the ground, nearer ones lower and larger. A place where one would be hidden,
    or would hide another, is drawn again, with the object smaller each time, so none is lost.

    Returns:
        the picture, ``uint8[size, size, 3]`` RGB, and each cutout's visible ``bool[size, size]``.

    Raises:
        InputError: there are too many.
    """
    image, horizon = draw_background(rng, size)
    lean, darkness = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.55)
    owner = np.full((size, size), -1)  # index of the topmost object at each pixel
    visible: np.ndarray = np.zeros(len(cutouts))  # pixels of each object that show
    needed = np.zeros(len(cutouts))
    shares = rng.uniform(*MIN_VISIBLE, len(cutouts))
    crowding = min(1.0, np.sqrt(6 / max(len(cutouts), 1)))
    nearness = np.sort(rng.uniform(0, 1, len(cutouts)))  # 0 at the horizon, 1 at the bottom
    for i, cutout in enumerate(cutouts):
        side = size * crowding * np.exp(rng.uniform(*np.log(SIDES))) * (0.75 + 0.5 * nearness[i])
        for attempt in range(MAX_TRIES):
            color, alpha, area = warp_cutout(rng, cutout, side)
            # Objects may stick out of the picture by a third of their side.
            x, y = rng.uniform(0.2 * side, size - 0.2 * side, 2)
            if attempt < TRIES_ON_GROUND:
                foot = horizon + (size - horizon) * (0.1 + nearness[i])
                y = min(foot - side / 2, size - 0.2 * side)
            left, top = np.round([x, y] - np.array(alpha.shape[0] / 2)).astype(int)
            rows, columns, inside = clip_patch(top, left, alpha.shape[0], size)
            mask = alpha[inside] > 0.5
            covered = owner[rows, columns][mask]
            after = visible - np.bincount(covered[covered >= 0], minlength=len(cutouts))
            after[i] = mask.sum()
            needed[i] = max(shares[i] * area, MIN_PIXELS)
            if (after >= needed).all():
                break
            # What is too thin to be seen grows.
            side = max(0.97 * side, MIN_SIDE) if area >= MIN_PIXELS else 1.1 * side
        else:
            raise InputError(f"{len(cutouts)} objects do not fit into {size}×{size} pixels")
        visible = after
        owner[rows, columns][mask] = i
        cast_shadow(image, alpha, top, left, lean, darkness)
        image[rows, columns] = image[rows, columns] * (1 - alpha[inside][..., None]) + color[inside]
    image = np.clip(image, 0, 255).round().astype(np.uint8)
    return image, [owner == i for i in range(len(cutouts))]
