"""A long-tailed classification set drawn in memory from the bundled cutouts: nothing to download.

Every image shows one cutout at a random place, scale and turn on a random background; some are
partly covered by another cutout, which is of no class.
"""

from typing import List, Sequence

import cv2
import numpy as np
import torch

from ..data.mini_lvis.cutouts import load_cutouts
from ..data.mini_lvis.scenes import clip_patch, draw_background, warp_cutout
from ..errors import InputError
from .images import Benchmark, ImageTensors
from .long_tail import long_tail_counts

# A class left without cutouts of no class would leave nothing to cover objects with.
MAX_CLASSES = 1000
# Sides as shares of the image's; how far off the centre an object may lie, too.
OBJECT_SIDE = (0.55, 0.95)
OBJECT_SHIFT = 0.12
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
    """One picture, ``uint8[size, size, 3]`` RGB, of a ``uint8[64, 64, 4]`` cutout.

    Args:
        rng: source of all randomness.
        cutout: what the picture shows.
        covers: cutouts of which one may hide a part of it.
        size: side of the picture in pixels.
    """
    image = draw_background(rng, size)
    side = size * rng.uniform(*OBJECT_SIDE)
    shift = size * rng.uniform(-OBJECT_SHIFT, OBJECT_SHIFT, 2)
    _paste(rng, image, cutout, side, shift)
    if rng.random() < COVER_PROBABILITY:
        angle = rng.uniform(0, 2 * np.pi)
        away = 0.45 * side * np.array([np.sin(angle), np.cos(angle)])
        cover = covers[int(rng.integers(len(covers)))]
        _paste(rng, image, cover, size * rng.uniform(*COVER_SIDE), shift + away)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def _draw_split(
    rng: np.random.Generator,
    cutouts: Sequence[np.ndarray],
    counts: Sequence[int],
    covers: Sequence[np.ndarray],
    size: int,
) -> ImageTensors:
    labels = [i for i, count in enumerate(counts) for _ in range(count)]
    images = np.stack([draw_cutout(rng, cutouts[i], covers, size) for i in labels])
    return ImageTensors(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))


def cutout_benchmark(
    num_classes: int = 60,
    largest: int = 300,
    imbalance_factor: float = 100.0,
    test_per_class: int = 50,
    image_size: int = 32,
    seed: int = 0,
) -> Benchmark:
    """Draw a long-tailed training split and a balanced test split.

    Args:
        num_classes: C; which cutouts they are, and which of them is frequent, depends on the seed.
        largest: n_max, the images of class 0.
        imbalance_factor: IF = n_max / n_min.
        test_per_class: images of every class in the test split.
        image_size: side of the images in pixels.
        seed: equal arguments give equal images.

    Raises:
        InputError: an argument outside its range.
    """
    if not 2 <= num_classes <= MAX_CLASSES:
        raise InputError(f"--classes must be in [2, {MAX_CLASSES}], got {num_classes}")
    if image_size < 16:
        raise InputError(f"--image-size must be at least 16 for cutouts, got {image_size}")
    counts = long_tail_counts(num_classes, largest, imbalance_factor)
    rng = np.random.default_rng(seed)
    names, cutouts = load_cutouts()
    order = rng.permutation(len(names)).tolist()
    classes: List[int] = order[:num_classes]
    covers = [cutouts[i] for i in order[num_classes:]]
    shown = [cutouts[i] for i in classes]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pictures are too small to share
    try:
        train = _draw_split(rng, shown, counts, covers, image_size)
        test = _draw_split(rng, shown, [test_per_class] * num_classes, covers, image_size)
    finally:
        cv2.setNumThreads(threads)
    origin = f"Cutouts on random backgrounds, drawn from seed {seed}."
    return Benchmark(train, test, [names[i] for i in classes], origin)
