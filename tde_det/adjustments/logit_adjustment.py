"""Post-hoc logit adjustment: subtracts the log of the class's share of the training instances.

    t_i = y_i − τ·log(C·π_i),   π_i = n_i / Σ_j n_j

Source: Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021. The factor C is ours: it
changes nothing among the classes, and makes the background's 0 the shift of an average class.
"""

from torch import Tensor

from ..activations import DISTRIBUTIONS
from .base import Adjustment, shift_classes


class LogitAdjustment(Adjustment):
    """Post-hoc logit adjustment of instance counts n, ``Tensor[C]``; option tau: τ ≥ 0."""

    statistics = ("instances",)
    options = {"tau": 1.0, "exempt": True}
    activations = (*DISTRIBUTIONS, "sigmoid")
    tau: float
    instances: Tensor

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        counts = self.instances.to(logits.dtype).clamp(min=1)
        return shift_classes(logits, -self.tau * (counts / counts.mean()).log())
