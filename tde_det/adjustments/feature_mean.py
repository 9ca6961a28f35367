"""The moving average of foreground box features, whose direction is d̂.

    x̄ ← μ·x̄ + mean of the foreground box features          d̂ᵏ = x̄ᵏ / ‖x̄ᵏ‖

Only the direction of x̄ is ever used, so the sum need not be divided by 1/(1−μ).

Source: Tang et al., "Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum
Causal Effect", NeurIPS 2020. Where we differ from the authors' detection code: background boxes
never enter the mean and class 0 does, the mean is one over all GPUs, and a batch without foreground
(or with a non-finite feature) leaves it finite.
"""

import torch
from torch import Tensor, nn

from ..classifiers.heads import head_norm, normalize, split_heads
from ..distributed import StepSum


def mean_direction(feature_mean: Tensor, num_heads: int) -> Tensor:
    """d̂ of a ``Tensor[D]``: ``Tensor[K, D/K]`` of unit rows; a zero head stays zero."""
    return split_heads(normalize(feature_mean.unsqueeze(0), num_heads), num_heads)[0]


def head_cosine(x: Tensor, feature_mean: Tensor, num_heads: int) -> Tensor:
    """cos(xᵏ, d̂ᵏ) of every box and head: ``Tensor[N, K]`` in [-1, 1], 0 where either is zero."""
    heads = split_heads(x, num_heads)
    # The sum is no matrix product, which autocast would do in half precision.
    return (heads * mean_direction(feature_mean, num_heads)).sum(dim=-1) / head_norm(heads)[..., 0]


class FeatureMean(nn.Module):
    """Keeps x̄, identical on every rank.

    Args:
        feature_dim: D.
        mu: decay μ of the average, in [0, 1).

    Attributes:
        feature_mean: ``Tensor[D]``, x̄, saved with the checkpoint; zero until the first foreground
            box.
        frozen: if True, :meth:`update_mean` changes nothing.

    Raises:
        ValueError: μ is outside [0, 1).
    """

    feature_mean: Tensor

    def __init__(self, feature_dim: int, mu: float):
        if not 0 <= mu < 1:
            raise ValueError(f"mu must be in [0, 1), got {mu}")
        nn.Module.__init__(self)
        self.mu, self.frozen = mu, False
        self.step_sum = StepSum()
        self.register_buffer("feature_mean", torch.zeros(feature_dim))

    @torch.no_grad()
    def update_mean(self, x: Tensor, is_foreground: Tensor) -> None:
        """Add one batch to the average; of micro-batches, all of a step together with the last.

        Every rank must call this once per batch, also with no boxes or no foreground: the one
        all-reduce inside waits for all of them. Nothing here waits for the GPU.

        Args:
            x: ``Tensor[N, D]`` box features of this rank, any float dtype.
            is_foreground: ``Tensor[N]`` of bool.
        """
        if self.frozen:
            return
        x = x.detach().to(self.feature_mean.dtype)  # half-precision sums would lose small features
        keep = is_foreground & torch.isfinite(x).all(dim=1)
        x = torch.where(keep.unsqueeze(1), x, torch.zeros_like(x))
        count = keep.sum(dim=0, keepdim=True).to(x.dtype)
        step = self.step_sum.add(torch.cat([x.sum(dim=0), count]))
        if step is None:  # there are more micro-batches
            return
        total, count = step[:-1], step[-1]
        mean = self.mu * self.feature_mean + total / count.clamp(min=1)
        # Finite features can still overflow in the sum. All ranks see the same sums and decide
        # alike; torch.where rather than `if` spares a device synchronisation.
        good = (count > 0) & torch.isfinite(mean).all()
        self.feature_mean.copy_(torch.where(good, mean, self.feature_mean))
