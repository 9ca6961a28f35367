"""Balanced softmax, which is logit adjustment during training.

    L = −log softmax(z + τ·log(C·π))_y,   π_i = n_i / Σ_j n_j

Trained so, z itself is the logit under a uniform prior, and inference uses it as it is. The factor
C changes nothing among the classes. It leaves the background alone, whose adjustment is 0: the
classes' priors have mean 1, and with equal counts this is cross entropy.

Sources: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020
(τ = 1); Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021. Ren et al. use, in
their detection code, a sigmoid variant; this is the softmax of both papers' text.
"""

import torch.nn.functional as F
from torch import Tensor

from .base import ClassificationLoss, check_range


def log_prior(counts: Tensor) -> Tensor:
    """log(C·π_i) = log(n_i / mean n): ``Tensor[C]`` → ``Tensor[C]``, 0 for equal counts."""
    return (counts / counts.mean()).log()


class LogitAdjustment(ClassificationLoss):
    """Cross entropy of prior-adjusted logits.

    Args:
        tau: τ ≥ 0; 0 is cross entropy, 1 balanced softmax.
    """

    needs_counts = True
    adjustment: Tensor

    def __init__(self, *args, tau: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        check_range("logit_adjustment", "tau", tau, 0, 100)
        adjustment = self.with_background(tau * log_prior(self.counts), 0.0)
        self.register_buffer("adjustment", adjustment, persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        adjusted = logits + self.adjustment.to(logits.dtype)
        return F.cross_entropy(adjusted, labels, reduction="none")


class BalancedSoftmax(LogitAdjustment):
    """Logit adjustment with τ = 1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, tau=1.0, **kwargs)
