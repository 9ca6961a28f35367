"""Training samplers that draw by class, after Kang et al., https://arxiv.org/abs/1910.09217.

Detectron2's ``TrainingSampler`` is the paper's instance-balanced one. Names here are values of
``DATALOADER.SAMPLER_TRAIN``.
"""

import functools
import itertools
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from ..errors import InputError

ClassesOfImages = Sequence[Union[Sequence[int], np.ndarray]]

_BLOCK = 4096  # draws made at once


class ClassBalancedSampler(TrainingSampler):
    """Draw a class, each with the same probability, then any of the images that contain it.

    Classes without an image are never drawn, and neither are images without a class. Like
    Detectron2's samplers it is infinite, and of the one sequence that a seed stands for, each rank
    takes every ``world_size``-th draw.

    Args:
        classes: for every image, the classes it contains, any number of times.
        seed: the same on all ranks; by default a random one that they agree on.

    Raises:
        InputError: no image contains a class.
    """

    _power = 0.0  # p(class) ∝ (number of its images) ** power

    def __init__(self, classes: ClassesOfImages, seed: Optional[int] = None):
        super().__init__(len(classes), seed=seed)
        flat = np.concatenate([np.asarray(own, np.int64) for own in classes])
        if not len(flat):
            raise InputError(
                f"DATALOADER.SAMPLER_TRAIN {type(self).__name__}: no image has an annotation"
            )
        image_of = np.repeat(np.arange(len(classes)), [len(own) for own in classes])
        _, labels = np.unique(flat, return_inverse=True)
        of_class, images = np.divmod(np.unique(labels * len(classes) + image_of), len(classes))
        self._images = images  # those of the first class, of the second, …
        self._counts = np.bincount(of_class)
        self._starts = np.cumsum(self._counts) - self._counts
        self._cumulative = np.cumsum(self._counts**self._power)

    def _draw(self, first: int, uniform: np.ndarray) -> np.ndarray:
        """Images of the draws ``first``, ``first + 1``, … from (3, n) uniform random numbers."""
        at = uniform[0] * self._cumulative[-1]
        of_class = np.searchsorted(self._cumulative, at, side="right")
        return self._images[
            self._starts[of_class] + (uniform[1] * self._counts[of_class]).astype(int)
        ]

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        for first in itertools.count(0, _BLOCK):
            uniform = torch.rand(3, _BLOCK, generator=generator, dtype=torch.float64)
            yield from self._draw(first, uniform.numpy()).tolist()


class SquareRootSampler(ClassBalancedSampler):
    """Like :class:`ClassBalancedSampler` with p(class) ∝ the root of the number of its images."""

    _power = 0.5


class ProgressivelyBalancedSampler(ClassBalancedSampler):
    """From instance-balanced to class-balanced: draw t of T is class-balanced with probability t/T.

    Otherwise, it is any image, also one without a class. After T, all draws are class-balanced.

    Args:
        classes, seed: see :class:`ClassBalancedSampler`.
        num_draws: T, of all ranks together.
    """

    def __init__(self, classes: ClassesOfImages, num_draws: int, seed: Optional[int] = None):
        super().__init__(classes, seed)
        self._num_draws = num_draws

    def _draw(self, first: int, uniform: np.ndarray) -> np.ndarray:
        is_balanced = uniform[2] * self._num_draws < np.arange(first, first + uniform.shape[1])
        any_image = (uniform[1] * self._size).astype(int)
        return np.where(is_balanced, super()._draw(first, uniform), any_image)


CLASS_SAMPLERS: Dict[str, Callable[..., ClassBalancedSampler]] = {
    sampler.__name__: sampler
    for sampler in (ClassBalancedSampler, SquareRootSampler, ProgressivelyBalancedSampler)
}
# Detectron2's, and the keys of the config that their draws depend on.
_REPEAT = ["DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"]
_STOCK_SAMPLERS: Dict[str, List[str]] = {
    "TrainingSampler": [],
    "RepeatFactorTrainingSampler": _REPEAT,
    "RandomSubsetTrainingSampler": ["DATALOADER.RANDOM_SUBSET_RATIO"],
    "WeightedTrainingSampler": ["DATASETS.TRAIN_REPEAT_FACTOR"],
    "WeightedCategoryTrainingSampler": ["DATASETS.TRAIN_REPEAT_FACTOR", *_REPEAT],
}


def check_sampler(cfg: CfgNode) -> None:
    """Look for the value of ``DATALOADER.SAMPLER_TRAIN``, and for what it needs.

    Raises:
        InputError: there is no such sampler, in this version of Detectron2 at least.
    """
    name, sections = cfg.DATALOADER.SAMPLER_TRAIN, {"DATALOADER", "DATASETS"}
    keys = {f"{section}.{key}" for section in sections for key in cfg[section]}
    known = [n for n, needed in _STOCK_SAMPLERS.items() if keys.issuperset(needed)]
    known += CLASS_SAMPLERS
    if name not in known:
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; known are {', '.join(known)}")
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    if not threshold >= 0:
        raise InputError(f"DATALOADER.REPEAT_THRESHOLD must be at least 0, got {threshold}")


def _num_draws(cfg: CfgNode) -> int:
    return cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH


def class_sampler(cfg: CfgNode, classes: ClassesOfImages) -> ClassBalancedSampler:
    """That of :data:`CLASS_SAMPLERS` which the config names, given the classes in every image."""
    name, seed = cfg.DATALOADER.SAMPLER_TRAIN, cfg.SEED if cfg.SEED >= 0 else None
    if name == ProgressivelyBalancedSampler.__name__:
        return ProgressivelyBalancedSampler(classes, _num_draws(cfg), seed=seed)
    return CLASS_SAMPLERS[name](classes, seed=seed)


def repeat_factor_sampler(cfg: CfgNode, classes: ClassesOfImages) -> RepeatFactorTrainingSampler:
    """Detectron2's sampler, given the class of every annotation in every image."""
    dicts: Dict[int, Dict[str, int]] = {}
    images = [
        {"annotations": [dicts.setdefault(i, {"category_id": i}) for i in np.asarray(own).tolist()]}
        for own in classes
    ]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        images, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)


def order_settings(cfg: CfgNode, num_images: int) -> Dict[str, Any]:
    """All that a sampler's draws depend on, apart from its seed, by name."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    settings: Dict[str, Any] = {
        "DATALOADER.SAMPLER_TRAIN": name,
        "the number of images": num_images,
    }
    if name == ProgressivelyBalancedSampler.__name__:
        settings["SOLVER.MAX_ITER * SOLVER.IMS_PER_BATCH"] = _num_draws(cfg)
    for key in _STOCK_SAMPLERS.get(name, ()):
        settings[key] = functools.reduce(getattr, key.split("."), cfg)
    return settings
