"""Batches of images in an order that follows from a sampler's seed and the number of batches."""

import itertools
import logging
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
from detectron2.utils import comm
from torch.utils.data import Sampler

from ..errors import InputError
from ..random_state import seed_of
from .seeded_dataset import Draw

logger = logging.getLogger(__name__)

# What Detectron2's samplers and ours take from a random number generator when they are made.
_SEEDS = ("_seed", "_seed_subset", "_indexes_subset")


class ResumableBatchSampler(Sampler[List[Draw]]):
    """Batches of an infinite sampler's indices, from any batch on, with seeds of augmentations.

    A wide image shares its batch with wide images alone, as in Detectron2's
    ``AspectRatioGroupedDataset``. A resumed training goes on as the unbroken one would have: it
    draws the batches before its first too, and leaves them out.

    Args:
        sampler: infinite; of Detectron2 or of :mod:`.samplers`.
        is_wide: ``bool[N]``, the group of every image; None for one group.
        ims_per_batch: SOLVER.IMS_PER_BATCH, of all ranks together.
        draw_settings: by name, all that the sampler's draws depend on, seeds apart.
        seed: of augmentations; by default a random one that the ranks agree on.

    Raises:
        InputError: the ranks cannot share a batch.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        is_wide: Optional[np.ndarray],
        ims_per_batch: int,
        draw_settings: Dict[str, Any],
        seed: Optional[int] = None,
    ):
        world_size = comm.get_world_size()
        if ims_per_batch < 1 or ims_per_batch % world_size:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {ims_per_batch} cannot be shared by {world_size} processes"
            )
        self.sampler = sampler
        self._is_wide = None if is_wide is None else is_wide.tolist()
        batch_settings = {
            "SOLVER.IMS_PER_BATCH": ims_per_batch,
            "DATALOADER.ASPECT_RATIO_GROUPING": is_wide is not None,
            "the number of processes": world_size,
        }
        self._seed = comm.shared_random_seed() if seed is None else seed
        self._size = ims_per_batch // world_size
        self._settings = {"draws": draw_settings, "batches": batch_settings}
        self._start = {"iteration": 0, "draws": 0}  # where the order starts, draws of all ranks
        self._skip = 0  # batches after the start

    def state_dict(self) -> Dict[str, Any]:
        """What :meth:`resume` needs besides the iteration; the same on all ranks."""
        seeds = {key: value for key, value in vars(self.sampler).items() if key in _SEEDS}
        return {
            "settings": self._settings,
            "seeds": seeds,
            "seed": self._seed,
            "start": self._start,
        }

    def resume(self, iteration: int, state: Optional[Dict[str, Any]]) -> None:
        """Start after ``iteration`` batches of each rank.

        ``state`` is the :meth:`state_dict` of the run to continue, None if it did not store it.
        """
        if state is None:
            logger.warning(
                "The checkpoint does not say how images were drawn: the training so far is taken "
                "to have had the images that the present config draws"
            )
            state = self.state_dict()
        self._seed = state.get("seed", self._seed)
        if state["settings"]["draws"] == self._settings["draws"]:
            vars(self.sampler).update(state["seeds"])
        before, now = ({**s["draws"], **s["batches"]} for s in (state["settings"], self._settings))
        # Another sampler may depend on other things: its name is a change already.
        common = [key for key in now if key in before]
        changes = [f"{k} was {before[k]} and is {now[k]}" for k in common if before[k] != now[k]]
        self._start, self._skip = state["start"], iteration - state["start"]["iteration"]
        if changes:
            logger.warning(
                "The order of the images cannot be continued, it starts anew after as many draws: "
                "%s",
                ", ".join(changes),
            )
            draws = self._start["draws"] + self._skip * before["SOLVER.IMS_PER_BATCH"]
            self._start, self._skip = {"iteration": iteration, "draws": draws}, 0

    def __iter__(self) -> Iterator[List[Draw]]:
        batches = itertools.islice(self._batches(), self._skip, None)
        for n, batch in enumerate(batches, self._start["iteration"] + self._skip):
            key = self._seed, comm.get_rank(), n
            yield [Draw(i, seed_of(*key, k)) for k, i in enumerate(batch)]

    def _batches(self) -> Iterator[List[int]]:
        """This rank's batches from the start of the order."""
        waiting: Dict[bool, List[int]] = {False: [], True: []}
        first = -(-self._start["draws"] // comm.get_world_size())
        for i in itertools.islice(self.sampler, first, None):
            group = waiting[self._is_wide is not None and self._is_wide[i]]
            group.append(i)
            if len(group) == self._size:
                yield list(group)
                group.clear()
