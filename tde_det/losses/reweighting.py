"""Weights for the classes: by inverse frequency and by effective number of samples.

    inverse frequency   ω_i ∝ n_i^(−p)
    effective number    ω_i ∝ (1 − β)/(1 − β^n_i)           Σ_i ω_i = C in both

The background, which neither is about, weighs 1, as much as an average class. The mean is over the
number of boxes, not over their weights: in PyTorch's weighted mean, a batch's many background boxes
would shrink with the weight of its rarest class.

Source of the effective number: Cui et al., "Class-Balanced Loss Based on Effective Number of
Samples", CVPR 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from .base import ClassificationLoss, in_range, one_hot


def effective_number_weights(counts: Tensor, beta: float) -> Tensor:
    """1/(1−β^n_i) ``Tensor[C]`` of ``Tensor[C]``, not scaled; all 1 for β = 0."""
    # 1 − β^n without cancellation for β near 1; β = 0 has no logarithm
    return 1 / -torch.expm1(counts * torch.as_tensor(beta, dtype=counts.dtype).log())


def check_beta(name: str, beta: float) -> None:
    """Raise ``ValueError`` unless 0 ≤ β < 1."""
    if not 0 <= beta < 1:
        raise ValueError(f"{name} must be in [0, 1), got {beta}")


class Weighted(ClassificationLoss):
    """ω_y · (−log softmax(z)_y); subclasses set ω."""

    needs_counts = True
    weights: Tensor

    def set_weights(self, weights: Tensor) -> None:
        """Set ω of the classes, ``Tensor[C]``, scaled to a sum of C."""
        weights = weights * len(weights) / weights.sum()
        self.register_buffer("weights", self.with_background(weights, 1.0), persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self.weights.to(logits.dtype)
        return weights[labels] * F.cross_entropy(logits, labels, reduction="none")


class WeightedCrossEntropy(Weighted):
    """Weights by inverse frequency; ``power`` is p, and with 0 this is cross entropy."""

    def __init__(self, *args, power: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.set_weights(self.counts ** -in_range("power", power, 0, 10))


class ClassBalancedCrossEntropy(Weighted):
    """Weights by effective number (CB softmax), from β = 0, none, to inverse frequency at 1."""

    def __init__(self, *args, beta: float = 0.9999, **kwargs):
        super().__init__(*args, **kwargs)
        check_beta("beta", beta)
        self.set_weights(effective_number_weights(self.counts, beta))


class ClassBalancedFocal(ClassBalancedCrossEntropy):
    """ω_y · Σ_i focal(z_i), the sigmoid focal loss over all classes (CB focal).

    As in the paper, the weight is that of the box's label, for all its classes. Foreground classes
    only, like Detectron2's sigmoid losses: a background box is negative for all of them.
    """

    activation = "sigmoid"

    def __init__(self, *args, gamma: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma = in_range("gamma", gamma, 0, 100)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits[:, : self.num_classes]
        focal = sigmoid_focal_loss(logits, one_hot(labels, logits), alpha=-1, gamma=self.gamma)
        return self.weights.to(logits.dtype)[labels] * focal.sum(dim=1)
