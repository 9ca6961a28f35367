"""FRACAL: divides scores by how evenly a class is spread over the images, and by its frequency.

    w_i  = log₁₀((1/C) / π_i),   π_i the class's share of the training instances
    softmax   p = softmax(z + w),  p_i ← p_i/Φ_i^λ, renormalised;   w_bg = 0, Φ_bg = 1
    sigmoid   p_i = σ(z_i) · σ(z_i + w_i + log₁₀((1/C) / (Φ_i^λ/Σ_j Φ_j^λ)))

Φ_i is the box-counting dimension of the class's box centres, in image coordinates in [0, 1]: the
slope of log N(g) against log g, N(g) being the occupied cells of a g×g grid, over g = 1…64 with
g² ≤ n_i. It is at least 1, and 1 for classes with fewer than 4 instances.

Source: Alexandridis et al., "Fractal Calibration for Long-tailed Object Detection", CVPR 2025, and
the authors' code. Differences: π_i is a share of the instances in the paper, which is taken here;
the authors' released configs take the share of the images that contain the class (``base10`` of
their frequency file). Their code leaves centres on the right and lower edge of the image out of
every cell; here they belong to the last one. In theirs, the background takes part in the
renormalisation; that is ``exempt=False`` here.
"""

from typing import Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import DISTRIBUTIONS
from .base import Adjustment, shift_classes

MAX_GRID = 64
MIN_INSTANCES = 4


def box_counting_dimension(points: np.ndarray) -> float:
    """Φ of ``float[n, 2]`` box centres in [0, 1], at least 1.

    >>> grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), axis=-1).reshape(-1, 2) / 64
    >>> round(box_counting_dimension(grid), 2)  # an even spread over the plane
    2.0
    >>> box_counting_dimension(np.full((100, 2), 0.5))  # a single place
    1.0
    """
    if len(points) < MIN_INSTANCES:
        return 1.0
    sizes = np.arange(1, min(MAX_GRID, int(len(points) ** 0.5)) + 1)
    occupied = []
    for g in sizes:
        column, row = np.clip((points * g).astype(np.int64), 0, g - 1).T
        occupied.append(np.count_nonzero(np.bincount(row * g + column)))
    return max(1.0, float(np.polyfit(np.log(sizes), np.log(occupied), 1)[0]))


def box_counting_dimensions(classes: Tensor, centers: Tensor, num_classes: int) -> Tensor:
    """Φ of every class, ``Tensor[C]``, from the ``Tensor[A]`` classes and ``Tensor[A, 2]`` centres
    of all boxes."""
    order = torch.argsort(classes, stable=True)
    groups = torch.bincount(classes, minlength=num_classes).tolist()
    return torch.tensor([box_counting_dimension(p.numpy()) for p in centers[order].split(groups)])


class FRACAL(Adjustment):
    """FRACAL, for softmax scores or for sigmoid scores.

    Statistics:
        instances: ``Tensor[C]``, training instances of each class.
        dimensions: ``Tensor[C]``, Φ.

    Options:
        strength: λ ≥ 0.
    """

    statistics = ("instances", "dimensions")
    options = {"strength": 2.0, "exempt": True}
    activations = (*DISTRIBUTIONS, "sigmoid")
    strength: float
    instances: Tensor
    dimensions: Tensor

    def _shift_and_spread(self, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        """w and log Φ^λ, ``Tensor[C]`` each."""
        counts = self.instances.to(dtype).clamp(min=1)
        log_spread = self.strength * self.dimensions.to(dtype).log()
        return -(len(counts) * counts / counts.sum()).log10(), log_spread

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        shift, log_spread = self._shift_and_spread(logits.dtype)
        return shift_classes(logits, shift - log_spread)

    def adjusted_sigmoid(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        shift, log_spread = self._shift_and_spread(logits.dtype)
        share = len(shift) * torch.softmax(log_spread, dim=0)  # C·Φ^λ/ΣΦ^λ
        shifted = shift_classes(logits, shift - share.log10())
        log_p = F.logsigmoid(logits) + F.logsigmoid(shifted)
        # As logits, of which the detector takes the sigmoid. The background's column is unused.
        return log_p - (-torch.expm1(log_p)).log()
