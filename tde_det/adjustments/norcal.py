"""NorCal: divides the score of every class by a power of its training count.

    t_i = y_i − γ·log n_i

Source: Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance
Segmentation", NeurIPS 2021. The authors count images and let the background take part in the
renormalisation, which is ``exempt=False`` here. Of sigmoid scores, each class's odds
p_i/(1 − p_i) are divided by n_i^γ: a class's background is its own.
"""

from torch import Tensor

from ..activations import DISTRIBUTIONS
from .base import Adjustment, log_counts, shift_classes


class NorCal(Adjustment):
    """NorCal.

    Statistics:
        images: ``Tensor[C]``, training images that contain each class.
        instances: ``Tensor[C]``, training instances of each class.

    Options:
        gamma: γ ≥ 0; 0 changes nothing.
        count_instances: n_i counts instances, not images.
    """

    statistics = ("images", "instances")
    options = {"gamma": 0.6, "count_instances": False, "exempt": True}
    activations = (*DISTRIBUTIONS, "sigmoid")
    gamma: float
    count_instances: bool
    images: Tensor
    instances: Tensor

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        counts = self.instances if self.count_instances else self.images
        return shift_classes(logits, -self.gamma * log_counts(counts.to(logits.dtype)))
