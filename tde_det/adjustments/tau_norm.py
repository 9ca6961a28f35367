"""τ-normalisation: divides each class weight of a linear classifier by its norm to the power τ.

    t_i = w_i·x / ‖w_i‖^τ + b_i = y_i + (‖w_i‖^−τ − 1)·w_i·x

It needs no statistics: the norms are those of the classifier's weights, with LWS's scales.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR
2020.
"""

import torch
from torch import Tensor

from ..activations import DISTRIBUTIONS
from .base import Adjustment


class TauNorm(Adjustment):
    """τ-normalisation; option tau: τ ≥ 0, 0 changes nothing, 1 gives unit weights."""

    options = {"tau": 0.5, "exempt": True}
    activations = (*DISTRIBUTIONS, "sigmoid")
    tau: float

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        scale = torch.where(norm > 0, norm, torch.ones_like(norm)) ** -self.tau
        return logits + x @ ((scale - 1) * weight).t()
