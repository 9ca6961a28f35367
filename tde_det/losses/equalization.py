"""Equalization losses: rare classes get fewer gradients from being negatives.

EQL ignores, in foreground boxes, the classes of low frequency that are not the label:

    L = Σ_i w_i · BCE(z_i, [i=y]),   w_i = 1 − [y ≠ bg]·[f_i < λ]·[i ≠ y],
    f_i = the part of all training images that contain class i

EQL v2 weighs positive and negative gradients by the ratio g_i of what they have been so far:

    w⁻_i = 1/(1 + exp(−γ(g_i − μ))),  w⁺_i = 1 + α(1 − w⁻_i),
    g_i = Σ_t |positive gradients of i| / Σ_t |negative gradients of i|

and has the background's column learn objectness, a binary class of its own with w = 1, by which
scores are multiplied. Until its first gradients, g is 100, as in the authors' code.

Sources: Tan et al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020, and
"Equalization Loss v2", CVPR 2021.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import StepSum
from .base import ClassificationLoss, in_range, one_hot


class EQL(ClassificationLoss):
    """Equalization loss over the foreground classes.

    Args:
        threshold: λ, in parts of all images. By default 110 images of LVIS v1, which spares rare
            and common classes; the paper's 0.00177 is 100 images of LVIS v0.5.
    """

    activation = "sigmoid"
    needs_counts = True
    is_rare: Tensor

    def __init__(self, *args, threshold: float = 0.0011, **kwargs):
        super().__init__(*args, **kwargs)
        counts = self.class_counts
        frequency = counts.images.double() / max(counts.num_images, 1)
        is_rare = frequency < in_range("threshold", threshold, 0, 1)
        self.register_buffer("is_rare", is_rare, persistent=False)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits[:, : self.num_classes]
        target = one_hot(labels, logits)
        is_foreground = (labels < self.num_classes).unsqueeze(1)
        ignored = is_foreground & self.is_rare & (target == 0)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return loss.masked_fill(ignored, 0.0)


class EQLv2(ClassificationLoss):
    """Equalization loss v2.

    Buffers (saved):
        positive_gradient, negative_gradient: ``float64[C]``, sums so far, over all ranks.
    """

    activation = "objectness_sigmoid"
    positive_gradient: Tensor
    negative_gradient: Tensor

    def __init__(self, *args, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma = in_range("gamma", gamma, 0, 1000)
        self.mu = in_range("mu", mu, -1000, 1000)
        self.alpha = in_range("alpha", alpha, 0, 1000)
        self.step_sum = StepSum()
        # In float32, a late batch's small gradients would be lost beside the sums.
        for name in ("positive_gradient", "negative_gradient"):
            self.register_buffer(name, torch.zeros(self.num_classes, dtype=torch.float64))

    def gradient_ratio(self) -> Tensor:
        """g, ``Tensor[C]``: positive to negative gradients so far, 100 before there are any."""
        seen = (self.positive_gradient + self.negative_gradient) > 0
        ratio = self.positive_gradient / (self.negative_gradient + 1e-10)
        return torch.where(seen.any(), ratio, torch.full_like(ratio, 100.0))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, logits)
        negative = torch.sigmoid(self.gamma * (self.gradient_ratio() - self.mu)).to(logits.dtype)
        negative = self.with_background(negative, 1.0)
        weights = torch.where(target > 0, 1 + self.alpha * (1 - negative), negative)
        loss = weights * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        self._collect_gradients(logits.detach(), target, weights)
        return loss

    def _collect_gradients(self, logits: Tensor, target: Tensor, weights: Tensor) -> None:
        gradient = (weights * (torch.sigmoid(logits) - target).abs())[:, : self.num_classes]
        target = target[:, : self.num_classes]
        sums = torch.stack([(gradient * target).sum(dim=0), (gradient * (1 - target)).sum(dim=0)])
        step = self.step_sum.add(sums.to(self.positive_gradient.dtype))
        if step is not None:
            self.positive_gradient += step[0]
            self.negative_gradient += step[1]
