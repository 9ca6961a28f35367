"""Seesaw loss: a rare class is pushed down less by the samples of frequent ones.

    L = −log( exp(z_y) / Σ_j S_yj·exp(z_j) ),   S_yj = M_yj · C_yj,  S_yy = 1
    mitigation    M_yj = min(1, (N_j/N_y)^p)      N: samples seen so far
    compensation  C_yj = max(1, (σ_j/σ_y)^q)      σ = softmax(z), without gradient

The background is not among the classes: the last column is objectness, learned by binary cross
entropy, as in the paper (there two logits of which only the difference matters). The classes' loss
is that of the foreground boxes. With ``objectness=False`` the background is one more class.

Source: Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation", CVPR 2021. Unlike in
mmdetection, samples are counted over all ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import all_reduce_sum
from .base import ClassificationLoss, in_range, one_hot


def seesaw_loss(
    logits: Tensor, labels: Tensor, samples: Tensor, p: float, q: float, eps: float = 1e-2
) -> Tensor:
    """Seesaw cross entropy of every box: ``Tensor[N]``.

    Args:
        logits: ``Tensor[N, M]``.
        labels: ``Tensor[N]`` in [0, M).
        samples: ``Tensor[M]``, N_i; fewer than 1 counts as 1.
        p, q: exponents ≥ 0; with both 0 this is cross entropy.
        eps: lower bound of σ_y in the ratio σ_j/σ_y.
    """
    samples = samples.to(logits.dtype).clamp(min=1)
    mitigation = p * (samples.log() - samples.log()[labels].unsqueeze(1)).clamp(max=0)
    probs = torch.softmax(logits.detach(), dim=1)
    ratio = probs / probs.gather(1, labels.unsqueeze(1)).clamp(min=eps)
    compensation = q * ratio.clamp(min=1).log()
    log_s = (mitigation + compensation) * (1 - one_hot(labels, logits))
    return F.cross_entropy(logits + log_s, labels, reduction="none")


class Seesaw(ClassificationLoss):
    """Seesaw loss; ``objectness``: whether the background's column is that instead of a class.

    Buffers (saved):
        samples: ``Tensor[C+1]``, boxes of each class so far, over all ranks.
    """

    samples: Tensor

    def __init__(self, *args, p: float = 0.8, q: float = 2.0, objectness: bool = True, **kwargs):
        super().__init__(*args, **kwargs)
        self.p, self.q = in_range("p", p, 0, 100), in_range("q", q, 0, 100)
        self.objectness = objectness and self.background
        self.activation = "objectness_softmax" if self.objectness else "softmax"
        # float32 would stop counting the background at 2²⁴ boxes.
        samples = torch.zeros(self.num_classes + self.background, dtype=torch.float64)
        self.register_buffer("samples", samples)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        counted = torch.bincount(labels, minlength=len(self.samples)).to(self.samples.dtype)
        self.samples += all_reduce_sum(counted)
        if not self.objectness:
            return seesaw_loss(logits, labels, self.samples, self.p, self.q)
        is_background = labels == self.num_classes
        objectness = F.binary_cross_entropy_with_logits(
            logits[:, -1], is_background.to(logits.dtype), reduction="none"
        )
        classes = labels.clamp(max=self.num_classes - 1)
        loss = seesaw_loss(logits[:, :-1], classes, self.samples[:-1], self.p, self.q)
        return objectness + loss.masked_fill(is_background, 0.0)
