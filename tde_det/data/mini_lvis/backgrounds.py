"""Backgrounds of mini_lvis pictures: places with a horizon, from gradients and smooth noise."""

from typing import NamedTuple, Sequence, Tuple

import cv2
import numpy as np

Color = Tuple[int, int, int]  # RGB


class Place(NamedTuple):
    """What a kind of place looks like: something far above the horizon, ground below it."""

    far: Tuple[Color, Color]  # at the picture's top, at the horizon
    ground: Tuple[Color, Color]  # at the horizon, at the picture's bottom
    grain: float  # contrast of the ground's texture
    stretch: float  # how much wider than high the texture's spots are
    clouds: float = 0.0  # opacity of the clouds above
    hills: float = 0.0  # how far the horizon rises and falls, in picture heights


PLACES = (
    # a meadow
    Place(((86, 150, 222), (196, 224, 244)), ((150, 190, 90), (96, 154, 58)), 0.12, 2, 0.9, 0.05),
    # a beach
    Place(((60, 140, 214), (178, 222, 244)), ((236, 218, 172), (214, 188, 136)), 0.07, 3, 0.7),
    # a wooden table
    Place(((226, 206, 184), (214, 192, 168)), ((166, 116, 74), (134, 88, 52)), 0.14, 16),
    # a floor of boards
    Place(((190, 206, 210), (176, 194, 200)), ((206, 188, 160), (176, 154, 124)), 0.10, 12),
    # a dark desk
    Place(((176, 190, 164), (190, 202, 178)), ((128, 98, 78), (98, 72, 58)), 0.12, 10),
    # snow
    Place(
        ((140, 180, 222), (206, 224, 240)), ((232, 238, 244), (200, 214, 230)), 0.05, 2, 0.5, 0.07
    ),
    # a road
    Place(((128, 160, 200), (220, 216, 206)), ((150, 152, 154), (118, 120, 124)), 0.06, 3, 0.6),
    # a desert
    Place(
        ((236, 178, 136), (250, 220, 176)), ((196, 148, 100), (160, 110, 72)), 0.10, 3, 0.3, 0.08
    ),
    # night
    Place(((34, 44, 96), (112, 104, 152)), ((66, 92, 96), (44, 62, 72)), 0.12, 2, 0.2, 0.06),
    # a tiled room
    Place(((224, 196, 200), (234, 212, 212)), ((206, 206, 204), (180, 180, 182)), 0.06, 4),
)


def smooth_noise(
    rng: np.random.Generator, shape: Tuple[int, int], cells: Sequence[float], octaves: int
) -> np.ndarray:
    """Noise of several scales, ``float32[H, W]`` around 0, of about ±1.

    Args:
        cells: how many spots of the coarsest scale lie in the picture's height and width.
    """
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        rows, columns = (int(np.clip(c * 2**octave, 2, 2 * n)) for c, n in zip(cells, shape))
        spots = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        total += cv2.resize(spots, (width, height), None, 0, 0, cv2.INTER_CUBIC) * 0.5**octave
    return total


def _gradient(colors: Tuple[Color, Color], share: np.ndarray) -> np.ndarray:
    first, second = np.asarray(colors, np.float32)
    return first + (second - first) * np.clip(share, 0, 1)[..., None]


def draw_background(rng: np.random.Generator, size: int) -> Tuple[np.ndarray, float]:
    """A random place, ``float32[size, size, 3]`` in [0, 255], and the row of its horizon."""
    place = PLACES[int(rng.integers(len(PLACES)))]
    horizon = rng.uniform(0.22, 0.42)
    y = (np.arange(size, dtype=np.float32)[:, None] + 0.5) / size
    line = horizon + place.hills * smooth_noise(rng, (1, size), (1, 3), 2)
    far = _gradient(place.far, np.broadcast_to(y / horizon, (size, size)))
    clouds = np.clip(smooth_noise(rng, (size, size), (5, 2.5), 4) - 0.1, 0, 0.8)[..., None]
    far += place.clouds * clouds * (255 - far)
    depth = (y - line) / (1 - line)  # 0 at the horizon, 1 at the bottom
    texture = smooth_noise(rng, (size, size), (12, 12 / place.stretch), 3)
    ground = _gradient(place.ground, depth) * (1 + place.grain * texture[..., None])
    below = np.clip((y - line) * size + 0.5, 0, 1)[..., None]  # the edge is a pixel wide
    image = far + (ground - far) * below
    # Light and its colour differ from picture to picture; sensors are noisy.
    image *= rng.uniform(0.85, 1.12) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    image += rng.normal(0, rng.uniform(0, 3), image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.float32), horizon * size
