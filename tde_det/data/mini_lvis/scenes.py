"""Compose one mini_lvis picture: cutouts on a procedural background, with exact masks."""

from typing import List, Sequence, Tuple

import cv2
import numpy as np

from ...errors import InputError

# An object stays recognisable: this much of its area lies in the picture, uncovered by later ones.
MIN_VISIBLE = 0.7
MIN_PIXELS = 16
MIN_SIDE = 12.0
MAX_TRIES = 2000


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random background, ``float32[size, size, 3]`` in [0, 255].

    Two colours are mixed by smooth noise, stripes, checks or rings, then fine grain is added.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2, 12), rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    pattern = rng.integers(5)
    mix = np.zeros_like(x)
    if pattern == 0:
        mix = along
    elif pattern == 1:
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + phase)
    elif pattern == 2:
        mix = (np.sin(np.pi * frequency * along) * np.sin(np.pi * frequency * across) > 0) * 1.0
    elif pattern == 3:
        cx, cy = rng.uniform(0, 1, 2)
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * np.hypot(x - cx, y - cy))
    cells = int(rng.integers(2, 9))
    noise = cv2.resize(rng.random((cells, cells), np.float32), (size, size), None, 0, 0, 2)
    weight = rng.uniform(0.3, 1.0)
    mix = np.clip((1 - weight) * mix + weight * noise, 0, 1)[..., None].astype(np.float32)
    colors = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    grain = rng.normal(0, rng.uniform(0, 12), (size, size, 1)).astype(np.float32)
    return np.clip(colors[0] * (1 - mix) + colors[1] * mix + grain, 0, 255)


def warp_cutout(
    rng: np.random.Generator, cutout: np.ndarray, side: float
) -> Tuple[np.ndarray, np.ndarray, float]:
    """Scale to ``side`` pixels, turn, mirror and shade a ``uint8[64, 64, 4]`` cutout at random.

    Returns:
        a square patch it fits into, colour ``float32[S, S, 3]`` premultiplied by alpha and alpha
        ``float32[S, S]`` in [0, 1], and the object's area in pixels.
    """
    alpha = cutout[..., 3:].astype(np.float32) / 255
    shade = rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)
    color = np.clip(cutout[..., :3].astype(np.float32) * shade.astype(np.float32), 0, 255)
    layers = np.concatenate([color * alpha, alpha], axis=2)

    scale = side / cutout.shape[0]
    mirror = -1 if rng.random() < 0.5 else 1
    turn = np.deg2rad(rng.uniform(-25, 25))
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[mirror * cos, -sin], [mirror * sin, cos]])
    size = int(np.ceil(1.4 * side)) + 2  # |cos| + |sin| ≤ 1.33 at 25°
    offset = size / 2 + rng.uniform(-0.5, 0.5, 2) - linear @ np.full(2, cutout.shape[0] / 2)
    if scale < 0.6:  # bilinear sampling alone would skip source pixels
        layers = cv2.GaussianBlur(layers, (0, 0), 0.3 / scale)
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


def compose_scene(
    rng: np.random.Generator, cutouts: Sequence[np.ndarray], size: int
) -> Tuple[np.ndarray, List[np.ndarray]]:
    """Draw every given ``uint8[64, 64, 4]`` cutout once, later ones over earlier ones.

    A place where an object would be hidden, or would hide another, is drawn again, with the object
    smaller each time, so no cutout is lost.

    Returns:
        the picture, ``uint8[size, size, 3]`` RGB, and each cutout's visible ``bool[size, size]``.

    Raises:
        InputError: there are too many.
    """
    image = draw_background(rng, size)
    owner = np.full((size, size), -1)  # index of the topmost object at each pixel
    visible: np.ndarray = np.zeros(len(cutouts))  # pixels of each object that show
    needed = np.zeros(len(cutouts))
    crowding = min(1.0, np.sqrt(6 / max(len(cutouts), 1)))
    for i, cutout in enumerate(cutouts):
        side = size * crowding * np.exp(rng.uniform(np.log(0.25), np.log(0.55)))
        for _ in range(MAX_TRIES):
            color, alpha, area = warp_cutout(rng, cutout, side)
            half = alpha.shape[0] / 2
            # Objects may stick out of the picture by a seventh of their side.
            left, top = (rng.uniform(0.35 * side, size - 0.35 * side, 2) - half).round().astype(int)
            rows, columns, inside = clip_patch(top, left, alpha.shape[0], size)
            color, alpha = color[inside], alpha[inside]
            mask = alpha > 0.5
            covered = owner[rows, columns][mask]
            after = visible - np.bincount(covered[covered >= 0], minlength=len(cutouts))
            after[i] = mask.sum()
            needed[i] = max(MIN_VISIBLE * area, MIN_PIXELS)
            if (after >= needed).all():
                break
            side = max(0.95 * side, MIN_SIDE)
        else:
            raise InputError(f"{len(cutouts)} objects do not fit into {size}×{size} pixels")
        visible = after
        owner[rows, columns][mask] = i
        image[rows, columns] = image[rows, columns] * (1 - alpha[..., None]) + color
    return image.round().astype(np.uint8), [owner == i for i in range(len(cutouts))]
