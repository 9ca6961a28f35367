"""Multi-head features: the D channels are cut into K equal chunks, each with a norm of its own.

Notation, used throughout this package:

    N       boxes (RoIs)                     C       foreground classes; background is class C
    D       feature channels                 K       heads
    x       box features, Tensor[N, D]       w       class weights, Tensor[C+1, D]
    d̂       direction of the mean feature    τ, γ, α temperature, weight offset, TDE strength
"""

import torch
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Cut the last dimension into heads: ``Tensor[N, D]`` → ``Tensor[N, K, D/K]``."""
    return x.reshape(x.shape[0], num_heads, x.shape[1] // num_heads)


def head_norm(heads: Tensor, offset: float = 0.0) -> Tensor:
    """‖xᵏ‖ + offset of a ``Tensor[N, K, D/K]``: ``Tensor[N, K, 1]``; 1 in place of 0.

    A zero head divided by it stays zero, with a finite gradient (dividing by a norm clamped to
    1e-12 would multiply gradients by 1e12).
    """
    norm = torch.linalg.vector_norm(heads, dim=-1, keepdim=True) + offset
    return torch.where(norm > 1e-12, norm, 1.0)


def normalize(x: Tensor, num_heads: int, offset: float = 0.0) -> Tensor:
    """Divide every head of a ``Tensor[N, D]`` by its norm plus an offset: xᵏ / (‖xᵏ‖ + offset).

    ``offset=0`` gives unit heads, ``offset=γ`` the de-confounded class weights, and ``offset=1``
    the capsule squashing, since n/(1+n) · x/n = x/(1+n).
    """
    heads = split_heads(x, num_heads)
    return (heads / head_norm(heads, offset)).reshape(x.shape)


def check_heads(feature_dim: int, num_heads: int) -> None:
    """Raise ``ValueError`` unless K ≥ 1 divides D."""
    if num_heads < 1 or feature_dim % num_heads != 0:
        raise ValueError(
            f"num_heads must be at least 1 and divide the {feature_dim} channels of the box "
            f"feature, got {num_heads}"
        )
