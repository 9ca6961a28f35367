"""Label-distribution-aware margin loss, with deferred re-weighting.

    L = −log softmax(s·(z' − Δ))_y,   Δ_y = max_margin · (n_y / n_min)^(−1/4),  other Δ = 0

where z' are cosines. Logits of a normalised classifier are s·z' already (s is MODEL.TDE.TAU there),
so s scales the margin alone: z_y − s·Δ_y. The background is no rare class and has no margin.

Deferred re-weighting (DRW): from a given part of the schedule on, every box is weighted by the
effective number of its class, see reweighting.py.

Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
NeurIPS 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import StepSum
from .base import in_range
from .reweighting import Weighted, check_beta, effective_number_weights


class LDAM(Weighted):
    """Cross entropy with a margin for rare classes, later with weights too.

    Args:
        max_margin: margin of the rarest class, in cosines.
        scale: s ≥ 0.
        drw_start: iteration at which re-weighting begins, -1 for never.
        drw_beta: β of the weights.

    Buffers (saved, so that a resumed training goes on):
        iteration: ``Tensor[]``, training steps so far.
    """

    margins: Tensor
    iteration: Tensor

    def __init__(
        self,
        *args,
        max_margin: float = 0.5,
        scale: float = 16.0,
        drw_start: int = -1,
        drw_beta: float = 0.9999,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        in_range("max_margin", max_margin, 0, 100)
        in_range("scale", scale, 0, 1000)
        check_beta("drw_beta", drw_beta)
        self.drw_start, self.step_sum = drw_start, StepSum()
        margins = self.counts**-0.25
        margins = self.with_background(scale * (max_margin * margins / margins.max()), 0.0)
        self.register_buffer("margins", margins, persistent=False)
        self.set_weights(effective_number_weights(self.counts, drw_beta))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = self.margins.to(logits.dtype)[labels].unsqueeze(1)
        rows = labels.unsqueeze(1)
        loss = F.cross_entropy(logits.scatter_add(1, rows, -margin), labels, reduction="none")
        if self.drw_start >= 0:  # without a wait for the GPU
            weights = self.weights.to(logits.dtype)[labels]
            loss = torch.where(self.iteration >= self.drw_start, weights, 1.0) * loss
        self.iteration += int(self.step_sum.is_complete())
        return loss
