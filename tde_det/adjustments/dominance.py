"""How far the mean direction d̂ is that of one class, which TDE then takes the evidence from.

    a_i = 1/K · Σ_k cos(wᵢᵏ, d̂ᵏ)

See docs/when_tde_hurts.md for what is measured with it.
"""

import torch
from torch import Tensor

from ..classifiers.heads import normalize
from .tde import class_projection

# d̂ counts as that of one class whose a_i is that far above every other: between 0.16, where TDE did
# no harm, and 0.31.
DOMINANT = 0.25


def class_alignment(weight: Tensor, feature_mean: Tensor, num_heads: int) -> Tensor:
    """a_i of every class: ``Tensor[C+1, D]``, ``Tensor[D]`` → ``Tensor[C+1]`` in [-1, 1]."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    unit = normalize(weight, num_heads)
    return class_projection(unit, feature_mean.to(unit.dtype), num_heads).mean(dim=1)
