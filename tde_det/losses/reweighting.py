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

from .base import ClassificationLoss, check_beta, check_range
from .focal import sigmoid_focal_loss


def inverse_frequency_weights(counts: Tensor, power: float = 1.0) -> Tensor:
    """n_i^(−p), scaled to a sum of C: ``Tensor[C]`` → ``Tensor[C]``."""
    weights = counts**-power
    return weights * len(counts) / weights.sum()


def effective_number_weights(counts: Tensor, beta: float) -> Tensor:
    """(1−β)/(1−β^n_i), scaled to a sum of C; all 1 for β = 0. ``Tensor[C]`` → ``Tensor[C]``."""
    # 1 − β^n without cancellation for β near 1; β = 0 has no logarithm
    beta_t = torch.as_tensor(beta, dtype=counts.dtype, device=counts.device)
    weights = 1 / -torch.expm1(counts * torch.log(beta_t))
    return weights * len(counts) / weights.sum()


class WeightedCrossEntropy(ClassificationLoss):
    """ω_y · (−log softmax(z)_y), ω by inverse frequency.

    Args:
        power: p ≥ 0; 0 is plain cross entropy.
    """

    needs_counts = True
    weights: Tensor

    def __init__(self, *args, power: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        check_range("weighted_cross_entropy", "power", power, 0, 10)
        weights = inverse_frequency_weights(self.counts, power)
        self.register_buffer("weights", self.with_background(weights, 1.0), persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self.weights.to(logits.dtype)
        return weights[labels] * F.cross_entropy(logits, labels, reduction="none")


class ClassBalancedCrossEntropy(WeightedCrossEntropy):
    """ω_y · (−log softmax(z)_y), ω by effective number of samples (CB softmax).

    Args:
        beta: β in [0, 1); 0 is plain cross entropy, towards 1 inverse frequency.
    """

    _name = "cb_cross_entropy"

    def __init__(self, *args, beta: float = 0.9999, **kwargs):
        super().__init__(*args, **kwargs)
        check_beta(self._name, "beta", beta)
        weights = effective_number_weights(self.counts, beta)
        self.weights = self.with_background(weights, 1.0)


class ClassBalancedFocal(ClassBalancedCrossEntropy):
    """ω_y · Σ_i focal(z_i), the sigmoid focal loss over all classes (CB focal).

    As in the paper, the weight is that of the box's label, for all its classes. Foreground classes
    only, like Detectron2's sigmoid losses: a background box is negative for all of them.

    Args:
        beta: see :class:`ClassBalancedCrossEntropy`.
        gamma: focusing γ ≥ 0.
    """

    activation = "sigmoid"
    _name = "cb_focal"

    def __init__(self, *args, gamma: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        check_range(self._name, "gamma", gamma, 0, 100)
        self.gamma = gamma

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        per_class = sigmoid_focal_loss(logits[:, : self.num_classes], labels, self.gamma)
        return self.weights.to(logits.dtype)[labels] * per_class.sum(dim=1)
