"""Federated losses: a batch counts for its own classes and for a few sampled ones.

LVIS is annotated for some classes per image only, so most of the classes that are not the label are
not known to be absent either. Per batch, the classes that occur in it (the background among them)
are filled up to S with others, drawn without replacement with p ∝ (images with the class)^power.

    sigmoid   Σ over the sampled classes of BCE(z_i, [i=y])
    softmax   −log( exp(z_y) / Σ_{j sampled or background} exp(z_j) )

The sigmoid form equals Detectron2's (MODEL.ROI_BOX_HEAD.USE_FED_LOSS). Source: Zhou et al.,
"Probabilistic two-stage detection", 2021, after Gupta et al., "LVIS", CVPR 2019. The softmax form
restricts cross entropy to the same classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import ClassificationLoss, in_range, one_hot


def sample_classes(labels: Tensor, num_sampled: int, weights: Tensor) -> Tensor:
    """Which classes a batch counts for: ``Tensor[C]`` of bool.

    Args:
        labels: ``Tensor[N]``; all of these are in. The background (≥ C) takes a place too.
        num_sampled: S, classes in all, if that many have a positive weight.
        weights: ``Tensor[C]`` ≥ 0, with which the others are drawn.
    """
    unique = labels.unique()
    present = torch.zeros(len(weights) + 1, dtype=torch.bool, device=weights.device)
    present[unique] = True
    remaining = F.pad(weights, (0, 1)).masked_fill(present, 0.0)
    number = min(num_sampled - len(unique), int((remaining > 0).sum()))
    if number > 0:
        present[torch.multinomial(remaining, number, replacement=False)] = True
    return present[:-1]


class Federated(ClassificationLoss):
    """Sigmoid federated loss; ``num_sampled`` is S ≥ 1."""

    activation = "sigmoid"
    needs_counts = True
    sampling_weights: Tensor

    def __init__(self, *args, num_sampled: int = 50, power: float = 0.5, **kwargs):
        super().__init__(*args, **kwargs)
        if num_sampled < 1:
            raise ValueError(f"num_sampled must be at least 1, got {num_sampled}")
        weights = self.class_counts.images.float() ** in_range("power", power, 0, 10)
        self.register_buffer("sampling_weights", weights, persistent=False)
        self.num_sampled = num_sampled

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits[:, : self.num_classes]
        sampled = sample_classes(labels, self.num_sampled, self.sampling_weights)
        target = one_hot(labels, logits)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return loss * sampled


class SoftmaxFederated(Federated):
    """Softmax federated loss: cross entropy over the sampled classes and the background."""

    activation = "softmax"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        sampled = sample_classes(labels, self.num_sampled, self.sampling_weights)
        sampled = self.with_background(sampled, True)
        return F.cross_entropy(logits.masked_fill(~sampled, -torch.inf), labels, reduction="none")
