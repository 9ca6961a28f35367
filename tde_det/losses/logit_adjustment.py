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

from .base import ClassificationLoss, in_range


class LogitAdjustment(ClassificationLoss):
    """Cross entropy of prior-adjusted logits; τ = 0 is plain cross entropy."""

    needs_counts = True
    adjustment: Tensor

    def __init__(self, *args, tau: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        log_prior = (self.counts / self.counts.mean()).log()  # log(C·π)
        adjustment = self.with_background(in_range("tau", tau, 0, 100) * log_prior, 0.0)
        self.register_buffer("adjustment", adjustment, persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        adjusted = logits + self.adjustment.to(logits.dtype)
        return F.cross_entropy(adjusted, labels, reduction="none")


class BalancedSoftmax(LogitAdjustment):
    """Logit adjustment with τ = 1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, tau=1.0, **kwargs)
