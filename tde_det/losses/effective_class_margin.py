"""Effective class-margin loss (ECM): margins and weights that bound the average precision.

    L = Σ_i ω_i · BCE(z̃_i, [i=y]),    σ(z̃_i) = w⁺_i·e^{z_i} / (w⁺_i·e^{z_i} + w⁻_i·e^{−z_i})
    w⁺_i/w⁻_i = (n_i/n̄_i)^¼,  n̄_i = Σ_j n_j − n_i,   hence z̃_i = 2z_i + ¼·log(n_i/n̄_i)
    ω_i = a_i·log((1 + a_i)/a_i),  a_i = n̄_i/n_i

over the classes and the background, which counts as ``background_ratio`` times all foreground
samples. Inference multiplies σ(z_i) by 1 − σ(z_bg), as the authors' code does.

Source: Cho and Krähenbühl, "Long-tail Detection with Effective Class-Margins", ECCV 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import ClassificationLoss, in_range, one_hot


class ECM(ClassificationLoss):
    """Effective class-margin loss.

    Args:
        background_ratio: background samples per foreground sample. The authors' measurement on
            Mask R-CNN by default.
    """

    activation = "objectness_sigmoid"
    needs_counts = True
    margins: Tensor
    weights: Tensor

    def __init__(self, *args, background_ratio: float = 6.3313, **kwargs):
        super().__init__(*args, **kwargs)
        in_range("background_ratio", background_ratio, 1e-6, 1e6)
        counts = self.with_background(self.counts, float(self.counts.sum()) * background_ratio)
        odds = (counts.sum() - counts) / counts
        self.register_buffer("margins", -odds.log() / 4, persistent=False)
        self.register_buffer("weights", odds * torch.log1p(1 / odds), persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        shifted = 2 * logits + self.margins.to(logits.dtype)
        target = one_hot(labels, logits)
        loss = F.binary_cross_entropy_with_logits(shifted, target, reduction="none")
        return self.weights.to(logits.dtype) * loss
