"""What all classification losses share.

Notation, used throughout this package:

    N    boxes (RoIs) or images       C    foreground classes; background is class C, and has the
    z    logits, Tensor[N, C+1]            last column (in image classification there is none)
    y    labels, Tensor[N]            n_i  training samples of class i

Every loss is a mean over the N boxes, as Detectron2's are, so that one learning rate serves all.
"""

from abc import ABC, abstractmethod
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..class_counts import ClassCounts


class ClassificationLoss(nn.Module, ABC):
    """A loss on logits; subclasses implement :meth:`loss`.

    Args:
        num_classes: C.
        background: whether the logits have a background column.
        counts: class frequencies of the training set. A loss that needs them can be built without,
            since a model that only infers has a loss, too; it then cannot be computed.

    Raises:
        ValueError: a value outside its range, or counts of another number of classes.
    """

    activation = "softmax"  # which of activations.py this loss trains for
    needs_counts = False

    counts: Tensor

    def __init__(
        self, num_classes: int, *, background: bool = True, counts: Optional[ClassCounts] = None
    ):
        super().__init__()
        self.num_classes = num_classes
        self.background = background
        self.lacks_counts = self.needs_counts and counts is None
        ones = torch.ones(num_classes)
        self.class_counts = counts or ClassCounts(ones, ones, num_classes)
        # A class that training never sees weighs as much as one seen once. Not saved: the counts
        # are those of the data trained on, not of a checkpoint's.
        instances = self.class_counts.instances.double().clamp(min=1)
        if len(instances) != num_classes:
            raise ValueError(f"counts are of {len(instances)} classes, not of {num_classes}")
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
            ValueError: the loss needs class counts and was built without them.
        """
        if self.lacks_counts:
            raise ValueError(f"{type(self).__name__} needs counts, those of the training set")
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
        return F.pad(per_class, (0, int(self.background)), value=value)


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


def in_range(name: str, value: float, low: float, high: float) -> float:
    """The value of a loss's argument, if low ≤ value ≤ high; else a ``ValueError``."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value:g}")
    return value
