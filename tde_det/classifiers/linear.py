"""The linear classifier: Y_i = w_i·x + b_i, Detectron2's own, whose class weights LWS can scale."""

import torch.nn.functional as F
from torch import Tensor, nn

from .scaled import ScaledClassifier


class LinearClassifier(ScaledClassifier):
    """A linear layer as a classifier.

    Args:
        linear: its weight and bias become this module's.
        num_classes: C; one more output of ``linear`` is the background.
        prior_logit: where the foreground logits start. Losses that train every class for itself
            need scores that start low; a softmax needs 0.
    """

    def __init__(self, linear: nn.Linear, num_classes: int, prior_logit: float = 0.0):
        super().__init__(num_classes)
        self.weight: nn.Parameter = linear.weight  # type: ignore[assignment]
        self.bias, self.prior_logit = linear.bias, prior_logit
        if prior_logit:
            nn.init.constant_(self.bias[:num_classes], prior_logit)

    def forward(self, x: Tensor) -> Tensor:
        """Box features ``Tensor[N, D]`` → logits ``Tensor[N, C+1]``, background last."""
        return F.linear(x, self.class_weight(), self.bias)

    def reset_parameters(self) -> None:
        """Draw the weights as Detectron2 does, from N(0, 0.01²); the bias starts at the prior."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)
        nn.init.constant_(self.bias[: self.num_classes], self.prior_logit)
