"""Learnable weight scaling (LWS): one scale f_i per foreground class on trained class weights.

    w̃_i = f_i · w_i,  f learned with everything else frozen

The background is no class whose scale the class frequencies distort, so it has none.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
ICLR 2020.
"""

from typing import Optional

import torch
from torch import Tensor, nn


def scale_classes(weight: Tensor, class_scale: Optional[Tensor]) -> Tensor:
    """f_i·w_i for the first C rows, the rest (background) as they are.

    Args:
        weight: ``Tensor[C+1, D]`` or ``Tensor[C, D]``.
        class_scale: ``Tensor[C]``, or None for no scaling.
    """
    if class_scale is None:
        return weight
    background = class_scale.new_ones(weight.shape[0] - class_scale.shape[0])
    return weight * torch.cat([class_scale, background]).unsqueeze(1)


class ScaledLinear(nn.Linear):
    """A linear classifier whose foreground weights are scaled class by class.

    Args:
        linear: the classifier to scale; its parameters become this one's.
        num_classes: C, of which the first C rows are.

    Parameters:
        class_scale: ``Tensor[C]``, 1 at first.
    """

    def __init__(self, linear: nn.Linear, num_classes: int):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.class_scale = nn.Parameter(linear.weight.new_ones(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Features ``Tensor[N, D]`` → logits ``Tensor[N, C+1]``."""
        return nn.functional.linear(x, scale_classes(self.weight, self.class_scale), self.bias)
