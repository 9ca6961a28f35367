"""Focal loss, over a softmax and over sigmoids.

    softmax   −(1 − p_y)^γ · log p_y,  p = softmax(z)
    sigmoid   −Σ_i α_t (1 − p_t)^γ · log p_t,  p_t = σ(z_i) for i = y, else 1 − σ(z_i)

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. The sigmoid form is
torchvision's. It is divided by the number of boxes, as Detectron2's sigmoid cross entropy, not by
that of foreground boxes as in RetinaNet, where nearly all anchors are background.
"""

import torch
import torchvision
from torch import Tensor

from .base import ClassificationLoss, check_range, one_hot


def softmax_focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """−(1 − p_y)^γ log p_y of every box: ``Tensor[N, M]``, ``Tensor[N]`` → ``Tensor[N]``."""
    log_p = torch.log_softmax(logits, dim=1)
    log_p_y = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    # 1 − p_y from the other classes: where p_y rounds to 1, the gradient of 0^γ has no limit.
    others = torch.arange(logits.shape[1], device=logits.device) != labels.unsqueeze(1)
    log_rest = log_p.masked_fill(~others, -torch.inf).logsumexp(dim=1)
    return -(gamma * log_rest).exp() * log_p_y if gamma > 0 else -log_p_y


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, gamma: float, alpha: float = -1.0) -> Tensor:
    """Focal loss of every box and class: ``Tensor[N, C]``, ``Tensor[N]`` → ``Tensor[N, C]``.

    Args:
        labels: those ≥ C (the background) are negative for every class.
        gamma: γ ≥ 0.
        alpha: weight of positives in [0, 1], that of negatives is 1 − α; −1 for no weights.
    """
    return torchvision.ops.sigmoid_focal_loss(logits, one_hot(labels, logits), alpha, gamma)


class Focal(ClassificationLoss):
    """Softmax focal loss.

    Args:
        gamma: γ ≥ 0; 0 is cross entropy.
    """

    def __init__(self, *args, gamma: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        check_range("focal", "gamma", gamma, 0, 100)
        self.gamma = gamma

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return softmax_focal_loss(logits, labels, self.gamma)


class SigmoidFocal(ClassificationLoss):
    """Sigmoid focal loss over the foreground classes.

    Args:
        gamma: γ ≥ 0.
        alpha: see :func:`sigmoid_focal_loss`. γ = 0 and α = −1 is Detectron2's sigmoid loss.
    """

    activation = "sigmoid"

    def __init__(self, *args, gamma: float = 2.0, alpha: float = 0.25, **kwargs):
        super().__init__(*args, **kwargs)
        check_range("sigmoid_focal", "gamma", gamma, 0, 100)
        if alpha != -1:
            check_range("sigmoid_focal", "alpha", alpha, 0, 1)
        self.gamma, self.alpha = gamma, alpha

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits[:, : self.num_classes], labels, self.gamma, self.alpha)
