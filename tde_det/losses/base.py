"""What all classification losses share.

Notation, used throughout this package:

    N    boxes (RoIs) or images       C    foreground classes; background is class C, and has the
    z    logits, Tensor[N, C+1]            last column (in image classification there is none)
    y    labels, Tensor[N]            n_i  training samples of class i

Every loss is a mean over the N boxes, as Detectron2's are, so that one learning rate serves all.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class ClassCounts(NamedTuple):
    """How often each foreground class occurs in the training set.

    Attributes:
        instances: ``Tensor[C]``, objects of each class.
        images: ``Tensor[C]``, images that contain each class.
        num_images: images in all.
    """

    instances: Tensor
    images: Tensor
    num_images: int


class ClassificationLoss(nn.Module, ABC):
    """A loss on logits; subclasses implement :meth:`loss`.

    Args:
        num_classes: C.
        background: whether the logits have a background column.
        counts: class frequencies of the training set, for the losses that need them.

    Raises:
        InputError: a value outside its range, or no counts where they are needed.
    """

    activation = "softmax"  # which of activation.py this loss trains for
    needs_counts = False

    counts: Tensor
    # Why ``counts`` are not those of the training set, if they are not: an evaluation needs none.
    counts_missing = ""

    def __init__(
        self, num_classes: int, *, background: bool = True, counts: Optional[ClassCounts] = None
    ):
        super().__init__()
        self.num_classes = num_classes
        self.background = background
        if not self.needs_counts:
            return
        if counts is None:
            raise InputError(f"{type(self).__name__} needs the class counts of the training set")
        if len(counts.instances) != num_classes:
            raise InputError(
                f"the training set has {len(counts.instances)} classes, the classifier has "
                f"{num_classes}"
            )
        # A class that training never sees weighs as much as one seen once. Not saved: the counts
        # are those of the data trained on, not of a checkpoint's.
        instances = counts.instances.double().clamp(min=1)
        self.register_buffer("counts", instances, persistent=False)

    @torch.jit.unused  # a scripted model only infers
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the boxes, 0 without any.

        Every rank must call this once per iteration, also without boxes: some losses sum their
        statistics over all ranks.

        Args:
            logits: ``Tensor[N, C+1]`` (``Tensor[N, C]`` without background), any float dtype.
            labels: ``Tensor[N]`` in [0, C].

        Raises:
            InputError: the training set's class counts are needed and missing.
        """
        if self.counts_missing:
            raise InputError(self.counts_missing)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        with torch.autocast(logits.device.type, enabled=False):  # half precision ruins log-sum-exp
            return self.loss(logits, labels.long()).sum() / max(len(labels), 1)

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every box, ``Tensor[N]``, or of every box and class, ``Tensor[N, ...]``."""

    def reset_statistics(self) -> None:
        """Forget what was collected over batches, for a new training with an old checkpoint."""
        for value in self.state_dict().values():
            value.zero_()

    def with_background(self, per_class: Tensor, value: float) -> Tensor:
        """Append the background's value to a ``Tensor[C]``, if there is a background."""
        if not self.background:
            return per_class
        return torch.cat([per_class, per_class.new_full((1,), value)])


class CrossEntropy(ClassificationLoss):
    """Softmax cross entropy −log softmax(z)_y, Detectron2's default."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Targets of binary losses: ``Tensor[N]`` → ``Tensor[N, M]``, in the shape of ``like``.

    Labels beyond the last column (the background, where it has none) give a row of zeros.
    """
    columns = torch.arange(like.shape[1], device=like.device)
    return (labels.unsqueeze(1) == columns).to(like.dtype)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, which must all call this; in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


def check_range(loss: str, name: str, value: float, low: float, high: float) -> None:
    """Raise :class:`InputError` unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise InputError(f"{loss}: {name} must be in [{low:g}, {high:g}], got {value:g}")


def check_beta(loss: str, name: str, beta: float) -> None:
    """Raise :class:`InputError` unless 0 ≤ β < 1."""
    if not 0 <= beta < 1:
        raise InputError(f"{loss}: {name} must be in [0, 1), got {beta}")
