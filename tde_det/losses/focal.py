"""Focal loss, over a softmax and over sigmoids.

    softmax   −(1 − p_y)^γ · log p_y,  p = softmax(z)
    sigmoid   −Σ_i α_t (1 − p_t)^γ · log p_t,  p_t = σ(z_i) for i = y, else 1 − σ(z_i)

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. The sigmoid form is
torchvision's. It is divided by the number of boxes, as Detectron2's sigmoid cross entropy, not by
that of foreground boxes as in RetinaNet, where nearly all anchors are background.
"""

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from .base import ClassificationLoss, in_range, one_hot


class Focal(ClassificationLoss):
    """Softmax focal loss; γ = 0 is cross entropy."""

    def __init__(self, *args, gamma: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma = in_range("gamma", gamma, 0, 100)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1)
        log_p_y = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
        if self.gamma == 0:
            return -log_p_y
        # 1 − p_y from the other classes: where p_y rounds to 1, the gradient of 0^γ has no limit.
        is_label = one_hot(labels, logits).bool()
        log_rest = log_p.masked_fill(is_label, -torch.inf).logsumexp(dim=1)
        return -(self.gamma * log_rest).exp() * log_p_y


class SigmoidFocal(ClassificationLoss):
    """Sigmoid focal loss over the foreground classes; the background is negative for all of them.

    Args:
        gamma: γ ≥ 0.
        alpha: weight of positives in [0, 1], that of negatives is 1 − α; −1 for no weights. γ = 0
            and α = −1 is Detectron2's sigmoid loss.
    """

    activation = "sigmoid"

    def __init__(self, *args, gamma: float = 2.0, alpha: float = 0.25, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma = in_range("gamma", gamma, 0, 100)
        self.alpha = alpha if alpha == -1 else in_range("alpha", alpha, 0, 1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits[:, : self.num_classes]
        return sigmoid_focal_loss(logits, one_hot(labels, logits), self.alpha, self.gamma)
