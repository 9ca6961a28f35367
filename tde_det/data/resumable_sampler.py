"""Let a resumed training draw what the unbroken one would have drawn."""

import itertools
import logging
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)

# What Detectron2's samplers and ours take from a random number generator when they are made.
_DRAWN_AT_START = ("_seed", "_seed_subset", "_indexes_subset")


def _permuted(draws: Iterator[int], order: np.ndarray) -> Iterator[int]:
    """Each block of ``len(order)`` draws in that order."""
    while True:
        block = list(itertools.islice(draws, len(order)))
        yield from (block[i] for i in order)


class ResumableSampler(Sampler[int]):
    """Another infinite sampler, from where a training stopped after a number of iterations.

    With ``DATALOADER.ASPECT_RATIO_GROUPING`` some images that have been drawn still wait for
    others of their shape, and several workers' images take turns. Both follow from the draws and
    the images' shapes: they are found by going through all draws again, without the images. The
    one exception are files that cannot be read, for which Detectron2 takes another image.

    Args:
        sampler: any of Detectron2's or ours.
        settings: by name, all that the order of the draws depends on.
        ims_per_batch: of all ranks together.
        is_grouped: by aspect ratio.
        num_workers: of the data loader.
        is_wide: tells if the image of an index has width > height; raises KeyError if not known.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        settings: Dict[str, Any],
        *,
        ims_per_batch: int,
        is_grouped: bool,
        num_workers: int,
        is_wide: Callable[[int], bool],
    ):
        self.sampler = sampler
        self._settings = settings
        self._batching = {
            "SOLVER.IMS_PER_BATCH": ims_per_batch,
            "DATALOADER.ASPECT_RATIO_GROUPING": is_grouped,
            "the number of processes": comm.get_world_size(),
        }
        self._batch_size = ims_per_batch // comm.get_world_size()
        self._is_grouped, self._is_wide = is_grouped, is_wide
        # Ungrouped, Detectron2's loader gives the same order for any number of workers.
        self._num_workers = max(1, num_workers) if is_grouped else 1
        self._order_workers = self._num_workers  # what the order is to look like
        self._start = {"iteration": 0, "draws": 0}  # when the settings became what they are
        self._waiting: List[int] = []  # drawn, but in no batch yet
        self._taken = 0  # draws of this rank since then, in a batch or waiting
        self._unused: Optional[Iterator[int]] = None  # no draw has been asked of it yet

    def state_dict(self) -> Dict[str, Any]:
        """What :meth:`resume` needs to know, apart from the iteration; the same on all ranks."""
        own = vars(self.sampler)
        return {
            "settings": self._settings,
            "batching": self._batching,
            "drawn_at_start": {name: own[name] for name in _DRAWN_AT_START if name in own},
            "num_workers": self._order_workers,
            "start": self._start,
        }

    def resume(self, iteration: int, state: Optional[Dict[str, Any]]) -> None:
        """Continue after ``iteration`` batches; iterators that exist already stay as they are.

        Args:
            iteration: number of batches that each rank has had.
            state: from :meth:`state_dict` of the run to continue; None if it did not store it.
        """
        if state is None:
            logger.warning(
                "The checkpoint does not say what was drawn: the images of the training so far are "
                "taken to be those that the present config draws"
            )
            state = self.state_dict()
        then = {**state["settings"], **state["batching"]}
        now = {**self._settings, **self._batching}
        differences = [
            f"{name} was {then[name]} and is {now[name]}"
            for name in now
            if name in then and then[name] != now[name]
        ]
        if state["settings"] == self._settings:
            vars(self.sampler).update(state["drawn_at_start"])
        self._unused = None
        start = state["start"]
        batches = iteration - start["iteration"]
        if not differences:
            self._start, self._order_workers = start, state["num_workers"]
            try:
                self._replay(batches)
                return
            except KeyError:
                differences = ["the data set does not say how wide and high its images are"]
        logger.warning(
            "The order of the images cannot be continued, it starts anew after as many draws: %s",
            ", ".join(differences),
        )
        draws = start["draws"] + batches * state["batching"]["SOLVER.IMS_PER_BATCH"]
        self._start, self._waiting, self._taken = {"iteration": iteration, "draws": draws}, [], 0
        self._order_workers = self._num_workers

    def _draws(self) -> Iterator[int]:
        """This rank's draws since the start, in the order in which the loader groups them."""
        skipped = -(-self._start["draws"] // comm.get_world_size())
        # Workers take turns by image, each having a batch of draws in a row.
        order = np.arange(self._order_workers * self._batch_size)
        order = order.reshape(self._order_workers, self._batch_size).T.ravel()
        return _permuted(itertools.islice(self.sampler, skipped, None), order)

    def _replay(self, batches: int) -> None:
        """Find what is taken and what is waiting once this many batches are full."""
        if not self._is_grouped:
            self._taken = batches * self._batch_size
            return
        # Fewer than a batch of either shape can be waiting.
        most = (batches + 2) * self._batch_size
        draws = np.fromiter(itertools.islice(self._draws(), most), np.int64, most)
        images, positions = np.unique(draws, return_inverse=True)
        is_wide = np.array([self._is_wide(i) for i in images.tolist()], bool)[positions]
        num_wide = np.cumsum(is_wide)
        num_tall = np.arange(1, most + 1) - num_wide
        full = num_wide // self._batch_size + num_tall // self._batch_size
        self._taken = int(np.searchsorted(full, batches)) + 1 if batches else 0
        self._waiting = []
        for shape in (is_wide, ~is_wide):
            of_shape = draws[: self._taken][shape[: self._taken]]
            self._waiting += of_shape[len(of_shape) - len(of_shape) % self._batch_size :].tolist()

    def __iter__(self) -> Iterator[int]:
        # In every worker Detectron2 iterates once for each image of a batch, all abreast. They
        # share what one iterator draws and skips.
        draws = self._from_here() if self._unused is None else self._unused
        self._unused, own = itertools.tee(draws)
        return self._used(own)

    def _used(self, draws: Iterator[int]) -> Iterator[int]:
        yield next(draws)
        self._unused = None  # or else it would keep all draws from here
        yield from draws

    def _from_here(self) -> Iterator[int]:
        draws = itertools.chain(self._waiting, itertools.islice(self._draws(), self._taken, None))
        # The inverse of what this loader's workers do with them.
        order = np.arange(self._num_workers * self._batch_size)
        return _permuted(draws, order.reshape(self._batch_size, self._num_workers).T.ravel())
