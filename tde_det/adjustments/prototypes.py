"""Prototypes: adds a box's cosine to the class's mean feature, the more the rarer the class.

    t_i = y_i + s · m/(m + n_i) · cos(x − c, μ_i − c)        c = mean of all μ_i

Weights and means are two estimates of a class from the same n_i images. Weights are the better one
where images abound. From a few they have hardly been moved, while a mean is good after one. The
share m/(m + n_i) is that of a prior worth m images: the more a class was seen, the less it counts.

The method is ours. Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
classify by means alone, as NCM does. Every class has one voice in c: a mean of all boxes would lie
near a class that has many of them, and point away from all others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..classifiers.heads import normalize
from .base import Adjustment


class Prototypes(Adjustment):
    """Adds the cosine to class means.

    Statistics:
        center: ``Tensor[D]``, mean feature of all foreground boxes.
        class_means: ``Tensor[C, D]``, those of each class minus ``center``; NaN for classes never
            seen, whose logits stay.
        images: ``Tensor[C]``, n_i, training images that contain each class.

    Options:
        strength: s ≥ 0; 0 changes nothing.
        prior: m ≥ 0; a class with so many images gets half of the strength.
    """

    statistics = ("center", "class_means", "images")
    options = {"strength": 8.0, "prior": 10.0, "exempt": True}
    strength: float
    prior: float
    center: Tensor
    class_means: Tensor
    images: Tensor

    def is_off(self) -> bool:
        return self.strength == 0

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        means, n = self.class_means.to(x.dtype), self.images.to(x.dtype).clamp(min=1)
        seen = ~torch.isnan(means[:, :1])
        c = torch.where(seen, means, 0.0).sum(dim=0) / seen.sum()
        means = torch.where(seen, means - c, 0.0)
        cosines = normalize(x - self.center.to(x.dtype) - c, 1) @ normalize(means, 1).t()
        evidence = self.strength * self.prior / (self.prior + n) * cosines
        rest = logits.shape[1] - evidence.shape[1]  # the background, if there is one
        return logits + F.pad(evidence, (0, rest)).to(logits.dtype)
