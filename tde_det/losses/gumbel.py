"""Gumbel optimised loss: binary cross entropy of the Gumbel activation.

    η(z) = exp(−exp(−z)),   L = −Σ_i [i=y]·log η(z_i) + [i≠y]·log(1 − η(z_i))

over the classes and the background, which is one of them. η falls off doubly exponentially on the
negative side: it assumes that a class is rare. As in the authors' code, logits are clamped to
[−4, 10], outside which −log η = exp(−z) or log(1 − η) would explode.

Source: Alexandridis et al., "Long-tailed Instance Segmentation using Gumbel Optimized Loss",
ECCV 2022.
"""

import torch
from torch import Tensor

from .base import ClassificationLoss, one_hot


class GOL(ClassificationLoss):
    """Gumbel cross entropy."""

    activation = "gumbel"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, logits)
        exponent = torch.exp(-logits.clamp(min=-4, max=10))  # −log η
        # log(1 − η), which is exact where η is close to 1
        log_complement = torch.log(-torch.expm1(-exponent))
        return target * exponent - (1 - target) * log_complement
