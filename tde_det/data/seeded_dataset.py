"""A data set whose random augmentations belong to a draw, not to the process that makes them."""

import logging
import random
from typing import Any, Callable, NamedTuple, Sequence

from torch.utils.data import Dataset

from ..errors import InputError
from ..random_state import seeded

logger = logging.getLogger(__name__)

_MAX_TRIES = 1000


class Draw(NamedTuple):
    """An image that a sampler has drawn.

    Attributes:
        image: its index.
        seed: of its augmentations, in [0, 2³²).
    """

    image: int
    seed: int


class SeededDataset(Dataset):
    """Detectron2's ``MapDataset`` for :class:`Draw`: the same for any number of workers.

    Args:
        dataset: what ``mapper`` takes.
        mapper: gives None for an image that cannot be used; another one is then drawn.
    """

    def __init__(self, dataset: Sequence[Any], mapper: Callable[[Any], Any]):
        self._dataset, self._mapper = dataset, mapper

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, draw: Draw) -> Any:
        index = draw.image
        with seeded(draw.seed):
            for _ in range(_MAX_TRIES):
                mapped = self._mapper(self._dataset[index])
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._dataset))
        raise InputError(f"{_MAX_TRIES} training images in a row cannot be used, see the log")
