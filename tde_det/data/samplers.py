"""Training samplers that draw by class, after Kang et al., https://arxiv.org/abs/1910.09217.

Detectron2's ``TrainingSampler`` is the paper's instance-balanced one. Names here are values of
``DATALOADER.SAMPLER_TRAIN``.
"""

import functools
import itertools
import logging
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler

from ..errors import InputError
from .objects import Objects

logger = logging.getLogger(__name__)

_BLOCK = 4096  # draws made at once


class ClassSampler(TrainingSampler):
    """Draw a class, then any of the images that contain it.

    Classes without an image are never drawn. Like Detectron2's samplers it is infinite, and of the
    one sequence that a seed stands for, each rank takes every ``world_size``-th draw.

    Args:
        objects: crowds left out; their classes may be any numbers.
        seed: the same on all ranks; by default a random one that they agree on.
        power: p(class) ∝ (number of its images) ** power.
        ramp: T. Draw t < T, counted over all ranks, is by class with probability t/T. Otherwise, it
            is any image, also one without a class.

    Raises:
        InputError: no image contains a class.
    """

    def __init__(
        self, objects: Objects, seed: Optional[int] = None, power: float = 0.0, ramp: int = 0
    ):
        super().__init__(objects.num_images, seed=seed)
        if not len(objects.classes):
            raise InputError("DATALOADER.SAMPLER_TRAIN draws by class: no image has an annotation")
        _, labels = np.unique(objects.classes, return_inverse=True)
        pairs = np.unique(labels * objects.num_images + objects.image_index)
        # The images of the first class, of the second, …
        of_class, self._images = np.divmod(pairs, objects.num_images)
        self._counts = np.bincount(of_class)
        self._starts = np.cumsum(self._counts) - self._counts
        self._cumulative = np.cumsum(self._counts**power)
        self._ramp = ramp

    def _draw(self, first: int, uniform: np.ndarray) -> np.ndarray:
        """Images of the draws ``first``, ``first + 1``, … from (3, n) uniform random numbers."""
        position = uniform[0] * self._cumulative[-1]
        of_class = np.searchsorted(self._cumulative, position, side="right")
        place = self._starts[of_class] + (uniform[1] * self._counts[of_class]).astype(int)
        is_by_class = uniform[2] * self._ramp <= np.arange(first, first + uniform.shape[1])
        any_image = (uniform[1] * self._size).astype(int)
        return np.where(is_by_class, self._images[place], any_image)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        for first in itertools.count(0, _BLOCK):
            uniform = torch.rand(3, _BLOCK, generator=generator, dtype=torch.float64)
            yield from self._draw(first, uniform.numpy()).tolist()


_PROGRESSIVE = "ProgressivelyBalancedSampler"  # from instance-balanced to class-balanced
CLASS_SAMPLERS = ("ClassBalancedSampler", "SquareRootSampler", _PROGRESSIVE)
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
    name = cfg.DATALOADER.SAMPLER_TRAIN
    keys = {f"{section}.{key}" for section in ("DATALOADER", "DATASETS") for key in cfg[section]}
    known = [n for n, needed in _STOCK_SAMPLERS.items() if keys.issuperset(needed)]
    known += CLASS_SAMPLERS
    if name not in known:
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; known are {', '.join(known)}")
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    if not threshold >= 0:
        raise InputError(f"DATALOADER.REPEAT_THRESHOLD must be at least 0, got {threshold}")


def warn_if_rfs_repeats_none(cfg: CfgNode, objects: Objects) -> None:
    """RFS repeats images of classes rarer than its threshold; small sets have none with LVIS's."""
    classes, _ = np.unique(np.stack([objects.classes, objects.image_index]), axis=1)
    counts = np.unique(classes, return_counts=True)[1]
    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    rarest = counts.min(initial=objects.num_images) / objects.num_images
    if rarest >= threshold:
        logger.warning(
            "DATALOADER.SAMPLER_TRAIN repeats no image: the rarest class is in %.3g of all images, "
            "and DATALOADER.REPEAT_THRESHOLD is %g. A class gets repeated below it",
            rarest,
            threshold,
        )


def _num_draws(cfg: CfgNode) -> int:
    return cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH


def class_sampler(cfg: CfgNode, objects: Objects) -> ClassSampler:
    """That of :data:`CLASS_SAMPLERS` which the config names."""
    name, seed = cfg.DATALOADER.SAMPLER_TRAIN, cfg.SEED if cfg.SEED >= 0 else None
    power = 0.5 if name == "SquareRootSampler" else 0
    ramp = _num_draws(cfg) if name == _PROGRESSIVE else 0
    return ClassSampler(objects, seed, power, ramp)


def draw_settings(cfg: CfgNode, num_images: int) -> Dict[str, Any]:
    """All that a sampler's draws depend on, apart from its seed, by name."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    settings = {"DATALOADER.SAMPLER_TRAIN": name, "the number of images": num_images}
    if name == _PROGRESSIVE:
        settings["SOLVER.MAX_ITER * SOLVER.IMS_PER_BATCH"] = _num_draws(cfg)
    for key in _STOCK_SAMPLERS.get(name, ()):
        settings[key] = functools.reduce(getattr, key.split("."), cfg)
    return settings
