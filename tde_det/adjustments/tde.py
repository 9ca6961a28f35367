"""Total direct effect (TDE): subtracts the mean feature's contribution to each logit.

    TDE_i = Y_i − α·τ/K · Σ_k cos(xᵏ, d̂ᵏ) · (wᵢᵏ·d̂ᵏ)/(‖wᵢᵏ‖+γ)

d̂ is the direction of the moving average in feature_mean.py. τ/K and ‖w‖+γ are in the weights that
the normalised classifiers hand over.

Source: Tang et al., NeurIPS 2020. See classifiers/heads.py for the notation.
"""

from typing import Any

import torch
from torch import Tensor

from ..classifiers.heads import check_heads, split_heads
from .base import Adjustment
from .feature_mean import FeatureMean, head_cosine, mean_direction


def class_projection(weight: Tensor, feature_mean: Tensor, num_heads: int) -> Tensor:
    """wᵢᵏ·d̂ᵏ of every class and head: ``Tensor[C+1, D]``, ``Tensor[D]`` → ``Tensor[C+1, K]``."""
    return (split_heads(weight, num_heads) * mean_direction(feature_mean, num_heads)).sum(dim=-1)


def tde_logits(logits: Tensor, cosine: Tensor, projection: Tensor, alpha: float) -> Tensor:
    """Subtract α times the effect of the mean direction from ``Tensor[N, C+1]``.

    Args:
        cosine: ``Tensor[N, K]``, cos(xᵏ, d̂ᵏ).
        projection: ``Tensor[C+1, K]``, τ/K·(wᵢᵏ·d̂ᵏ)/(‖wᵢᵏ‖+γ).
    """
    for k in range(cosine.shape[1]):  # no matrix product, which autocast would do in half precision
        logits = torch.addcmul(logits, cosine[:, k : k + 1], projection[:, k], value=-alpha)
    return logits


class TDE(Adjustment, FeatureMean):
    """TDE inference for a normalised classifier; its :meth:`update_mean` is for training.

    Args:
        feature_dim: D.
        num_heads: K, that of the classifier.
        mu: decay μ of the feature mean, in [0, 1).

    Options:
        alpha: TDE strength α ≥ 0; 0 turns TDE off.

    Raises:
        ValueError: D is not divisible by K, K < 1, or an argument is outside its range.
    """

    options = {"alpha": 1.5, "exempt": True}
    alpha: float

    def __init__(self, feature_dim: int, num_heads: int = 2, mu: float = 0.9998, **options: Any):
        check_heads(feature_dim, num_heads)
        FeatureMean.__init__(self, feature_dim, mu)
        self.num_heads = num_heads
        self.set_options(**{**self.options, **options})

    def is_off(self) -> bool:
        return self.alpha == 0

    def adjusted(self, x: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
        mean = self.feature_mean.to(x.dtype)
        projection = class_projection(weight, mean, self.num_heads)
        cosine = head_cosine(x, mean, self.num_heads)
        return tde_logits(logits, cosine, projection, self.alpha)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in ("auto_alpha", "foreground_cosine"):  # in checkpoints of earlier versions
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
