"""A long-tailed classification set drawn in memory from the bundled cutouts: nothing to download.

Every image shows one drawing of its class at a random scale and turn, off its middle, in a random
place; some are partly covered by another class's drawing, a class outside the benchmark. Training
images show a drawing at random, test images all of a class's drawings in turn.
"""

from typing import Sequence

import numpy as np
import torch

from ..data.mini_lvis.backgrounds import draw_background
from ..data.mini_lvis.cutouts import load_cutouts
from ..data.mini_lvis.scenes import clip_patch, warp_cutout
from ..errors import InputError
from .images import Benchmark, ImageTensors
from .long_tail import long_tail_counts

MAX_CLASSES = 1000  # the others' cutouts cover objects
# Sides as shares of the image's; how far off the centre an object may lie, too.
OBJECT_SIDE = (0.55, 0.95)
OBJECT_SHIFT = (-0.12, 0.12)
COVER_SIDE = (0.25, 0.5)
COVER_PROBABILITY = 0.3


def _paste(
    rng: np.random.Generator, image: np.ndarray, cutout: np.ndarray, side: float, shift: np.ndarray
) -> None:
    """Draw a cutout of this side, in pixels, into a float image, off its centre by ``shift``."""
    color, alpha, _ = warp_cutout(rng, cutout, side)
    size, patch = image.shape[0], alpha.shape[0]
    top, left = ((size - patch) / 2 + shift).round().astype(int)
    rows, columns, inside = clip_patch(top, left, patch, size)
    image[rows, columns] *= 1 - alpha[inside][..., None]
    image[rows, columns] += color[inside]


def draw_cutout(
    rng: np.random.Generator, cutout: np.ndarray, covers: Sequence[np.ndarray], size: int
) -> np.ndarray:
    """A picture, ``uint8[size, size, 3]`` RGB, of a ``uint8[64, 64, 4]`` cutout, some covered."""
    image, _ = draw_background(rng, size)
    side, shift = size * rng.uniform(*OBJECT_SIDE), size * rng.uniform(*OBJECT_SHIFT, 2)
    _paste(rng, image, cutout, side, shift)
    if rng.random() < COVER_PROBABILITY:
        angle = rng.uniform(0, 2 * np.pi)
        away = 0.45 * side * np.array([np.sin(angle), np.cos(angle)])
        cover = covers[int(rng.integers(len(covers)))]
        _paste(rng, image, cover, size * rng.uniform(*COVER_SIDE), shift + away)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def cutout_benchmark(
    classes: int = 60,
    largest_class: int = 300,
    imbalance_factor: float = 100.0,
    test_per_class: int = 50,
    image_size: int = 32,
    seed: int = 0,
) -> Benchmark:
    """Draw a long-tailed training split (see `long_tail_counts`) and a balanced test split.

    Args:
        classes: C; which cutouts they are, and which of them is frequent, depends on the seed.
        image_size: side of the images in pixels.
        seed: equal arguments give equal images.

    Raises:
        InputError: an argument outside its range.
    """
    if not 2 <= classes <= MAX_CLASSES:
        raise InputError(f"classes must be in [2, {MAX_CLASSES}], got {classes}")
    if image_size < 16:
        raise InputError(f"image_size must be at least 16 for cutouts, got {image_size}")
    counts = long_tail_counts(classes, largest_class, imbalance_factor)
    rng = np.random.default_rng(seed)
    names, cutouts = load_cutouts()
    order = rng.permutation(len(names)).tolist()
    shown = [cutouts[i] for i in order[:classes]]
    covers = [drawing for i in order[classes:] for drawing in cutouts[i]]
    splits = []
    for is_test, images_of in enumerate((counts, [test_per_class] * classes)):
        labels = np.repeat(np.arange(classes), images_of)
        kinds = np.array([len(shown[i]) for i in labels])
        drawn = np.arange(len(labels)) % kinds if is_test else rng.integers(kinds)
        chosen = [shown[i][d] for i, d in zip(labels, drawn)]
        images = np.stack([draw_cutout(rng, cutout, covers, image_size) for cutout in chosen])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        splits.append(ImageTensors(pixels, torch.from_numpy(labels)))
    origin = f"Cutouts on random backgrounds, drawn from seed {seed}."
    return Benchmark(splits[0], splits[1], [names[i] for i in order[:classes]], origin)
