"""Sums over the foreground boxes of one pass over training data, for TDE and class means."""

import torch
from torch import Tensor

from .adjustments.feature_mean import mean_direction
from .classifiers.heads import normalize, split_heads
from .distributed import all_reduce_sum


class ForegroundStatistics:
    """Sums over the foreground boxes of one pass over training data.

    Args:
        num_classes: C; other labels are background.
        feature_dim: D.
        num_heads: K of the classifier whose cosine is wanted; 1 for others.
        device: where the features are.

    Attributes:
        sums: ``Tensor[C, D]``, per class Σ x.
        counts: ``Tensor[C]``.
        unit_sum: ``Tensor[D]``, Σ xᵏ/‖xᵏ‖.
    """

    def __init__(self, num_classes: int, feature_dim: int, num_heads: int = 1, device=None):
        self.num_heads = num_heads
        self.sums = torch.zeros(num_classes, feature_dim, dtype=torch.float64, device=device)
        self.counts = self.sums.new_zeros(num_classes)
        self.unit_sum = self.sums.new_zeros(feature_dim)

    @torch.no_grad()
    def add(self, x: Tensor, labels: Tensor) -> None:
        """Add a batch: ``Tensor[N, D]`` and ``Tensor[N]``. Non-finite boxes do not count."""
        keep = (labels >= 0) & (labels < len(self.counts)) & torch.isfinite(x).all(dim=1)
        x, labels = x[keep].double(), labels[keep]
        self.sums.index_add_(0, labels, x)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.unit_sum += normalize(x, self.num_heads).sum(dim=0)

    def all_reduce(self) -> None:
        """Add up what all ranks have seen; each must call this once."""
        for tensor in (self.sums, self.counts, self.unit_sum):
            all_reduce_sum(tensor)

    def mean(self) -> Tensor:
        """Mean foreground feature ``Tensor[D]``.

        Raises:
            ValueError: no box has been seen.
        """
        if not bool(self.counts.any()):
            raise ValueError("there is no foreground box in the training images")
        return self.sums.sum(dim=0) / self.counts.sum()

    def centered_class_means(self) -> Tensor:
        """Mean feature of every class minus :meth:`mean`, ``Tensor[C, D]``; NaN if never seen."""
        counts = torch.where(self.counts > 0, self.counts, torch.nan)
        return self.sums / counts.unsqueeze(1) - self.mean()

    def class_balanced_mean(self) -> Tensor:
        """Mean of the classes' mean features, ``Tensor[D]``: every class seen counts once."""
        return self.mean() + self.centered_class_means().nanmean(dim=0)

    def mean_cosine(self, mean: Tensor) -> float:
        """Mean of cos(xᵏ, d̂ᵏ) over foreground boxes and heads, d̂ that of ``mean``."""
        unit_mean = (self.unit_sum / self.counts.sum()).unsqueeze(0)
        direction = mean_direction(mean, self.num_heads)
        return float((split_heads(unit_mean, self.num_heads)[0] * direction).sum(dim=1).mean())
