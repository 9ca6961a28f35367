"""Learnable weight scaling (LWS): one scale f_i per foreground class on trained class weights.

    w̃_i = f_i · w_i,  f learned with everything else frozen

The background has no scale: class frequencies do not distort its weights.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
ICLR 2020.
"""

from typing import Optional

import torch
from torch import Tensor, nn


class ScaledClassifier(nn.Module):
    """What every classifier offers: class weights, which LWS can learn to scale.

    Parameters:
        weight: ``Tensor[C+1, D]`` (``Tensor[C, D]`` without a background class).
        class_scale: ``Tensor[C]``, f; None before :meth:`learn_class_scale`.
    """

    weight: nn.Parameter
    class_scale: Optional[Tensor]

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.register_parameter("class_scale", None)

    def learn_class_scale(self) -> None:
        """Add the parameter ``class_scale``, ones at first."""
        self.class_scale = nn.Parameter(self.weight.new_ones(self.num_classes))

    def scale_classes(self, weight: Tensor) -> Tensor:
        """f_i·w_i for the first C rows of ``Tensor[C+1, D]``; the background's row stays."""
        if self.class_scale is None:
            return weight
        background = self.class_scale.new_ones(weight.shape[0] - self.num_classes)
        return weight * torch.cat([self.class_scale, background]).unsqueeze(1)

    def class_weight(self) -> Tensor:
        """What features are multiplied with, ``Tensor[C+1, D]``."""
        return self.scale_classes(self.weight)

    def reset_parameters(self) -> None:
        """Draw the class weights anew; class scales, if there are any, become 1."""
        if self.class_scale is not None:
            nn.init.ones_(self.class_scale)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take the class scales of a checkpoint that has them."""
        if prefix + "class_scale" in state_dict and self.class_scale is None:
            self.learn_class_scale()
        super()._load_from_state_dict(state_dict, prefix, *args)
