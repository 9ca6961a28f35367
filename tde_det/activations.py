"""How logits become scores: each loss trains for one of these activations.

Notation: z logits, C foreground classes, background last (or no background, in classification).

    softmax               p = softmax(z)
    sigmoid               p_i = σ(z_i), every class for itself; the background's column is unused
    objectness_softmax    p_bg = σ(z_bg), p_i = (1 − p_bg) · softmax(z_1…z_C)_i
    objectness_sigmoid    p_bg = σ(z_bg), p_i = (1 − p_bg) · σ(z_i)
    gumbel                p_i = exp(−exp(−z_i)), every class for itself
"""

import math

import torch
from torch import Tensor

ACTIVATIONS = ("softmax", "sigmoid", "objectness_softmax", "objectness_sigmoid", "gumbel")
# Those that are distributions over classes and background, which TDE can compare and exempt.
DISTRIBUTIONS = ("softmax", "objectness_softmax")


def scores_from_logits(logits: Tensor, activation: str, background: bool = True) -> Tensor:
    """Logits ``Tensor[N, C+1]`` → scores ``Tensor[N, C+1]`` in [0, 1], background last.

    Args:
        logits: ``Tensor[N, C+1]``, or ``Tensor[N, C]`` with ``background=False``.
        activation: one of ``ACTIVATIONS``.
        background: whether the last column is the background. Without it, objectness is 1.
    """
    if activation == "softmax" or (activation == "objectness_softmax" and not background):
        return torch.softmax(logits, dim=1)
    if activation == "sigmoid" or (activation == "objectness_sigmoid" and not background):
        return torch.sigmoid(logits)
    if activation == "gumbel":
        return torch.exp(-torch.exp(-logits))
    p_bg = torch.sigmoid(logits[:, -1:])
    p_fg = torch.sigmoid(-logits[:, -1:])  # 1 − p_bg, also where that rounds to 0
    if activation == "objectness_softmax":
        classes = torch.softmax(logits[:, :-1], dim=1)
    else:
        classes = torch.sigmoid(logits[:, :-1])
    return torch.cat([classes * p_fg, p_bg], dim=1)


def prior_logit(prior: float, activation: str) -> float:
    """The logit whose score is ``prior`` in (0, 1): where a linear classifier's bias starts.

    Losses that treat every class for itself start at C·log 2 with a bias of 0, which diverges
    for a large vocabulary. Source: Lin et al., ICCV 2017, section 4.1.
    """
    if activation == "gumbel":
        return -math.log(-math.log(prior))
    return math.log(prior / (1 - prior))
