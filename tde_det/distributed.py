"""Sums over the processes and the micro-batches of a training step."""

from typing import Optional

import torch.distributed as dist
from torch import Tensor, nn


def all_reduce_sum(x: Tensor) -> Tensor:
    """Replace a tensor by its sum over all ranks, in place; every rank must call this."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


class StepSum(nn.Module):
    """Adds up a statistic over the micro-batches of a step, and then over the ranks.

    A module without parameters, so that a trainer finds it in its model.

    Attributes:
        part, parts: the micro-batch that the model sees, and how many make up a step. The trainer
            sets them; a step is one batch unless it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part, self.parts = 0, 1
        self._sum: Optional[Tensor] = None

    def is_complete(self) -> bool:
        """Whether this is the last micro-batch of its step."""
        return self.part == self.parts - 1

    def add(self, x: Tensor) -> Optional[Tensor]:
        """The step's sum over micro-batches and ranks with its last micro-batch; before, None.

        Every rank must call this once per micro-batch.
        """
        x = x if self.part == 0 or self._sum is None else self._sum + x
        self._sum = None if self.is_complete() else x
        return all_reduce_sum(x) if self.is_complete() else None
