"""Nearest class mean (NCM): scores a box by the cosine of its feature and the class's mean feature.

    t_i = T · cos(x − c, μ_i − c)

μ_i is the mean feature of class i, c that of all foreground boxes, both from one pass over training
data. Classes never seen score 0. It ignores the logits before it, so it belongs first in a chain.

Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR
2020. The common centre c is ours: box features are non-negative, so all their cosines are high.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..classifiers.heads import normalize
from .base import Adjustment


class NCM(Adjustment):
    """Nearest class mean.

    Statistics:
        center: ``Tensor[D]``, c.
        class_means: ``Tensor[C, D]``, μ_i − c; NaN for classes never seen.

    Options:
        temperature: T > 0. It does not change which class is nearest, but how sure scores are.
    """

    statistics = ("center", "class_means")
    options = {"temperature": 16.0, "exempt": True}
    temperature: float
    center: Tensor
    class_means: Tensor

    @classmethod
    def check_option(cls, name: str, value: Any) -> Any:
        if name == "temperature" and value == 0:
            raise ValueError("temperature must be positive, got 0")
        return super().check_option(name, value)

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        features = normalize(x - self.center.to(x.dtype), 1)
        t = self.temperature * features @ normalize(self.class_means.to(x.dtype), 1).t()
        t = torch.where(torch.isnan(t), -math.inf, t).to(logits.dtype)
        return torch.cat([t, logits[:, self.class_means.shape[0] :]], dim=1)
