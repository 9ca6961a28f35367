"""De-confounded training: normalised classifiers, without a bias.

    Y_i = τ/K · Σ_k  wᵢᵏ·xᵏ / ((‖wᵢᵏ‖+γ)·‖xᵏ‖)          "causal_norm"
    Y_i = τ/K · Σ_k  wᵢᵏ·xᵏ / (‖wᵢᵏ‖·‖xᵏ‖)              "cosine"
    Y_i = τ/K · Σ_k  wᵢᵏ·xᵏ / ((‖wᵢᵏ‖+γ)·(1+‖xᵏ‖))      "capsule": feature norm n becomes n/(1+n)

Source: Tang et al., "Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum
Causal Effect", NeurIPS 2020. See heads.py for the notation.
"""

import logging
import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import check_heads, normalize
from .scaled import ScaledClassifier

KINDS = ("causal_norm", "cosine", "capsule")


class CausalNormClassifier(ScaledClassifier):
    """Multi-head normalised classifier. :class:`~tde_det.adjustments.TDE` changes its logits.

    Args:
        feature_dim: D.
        num_classes: C; the background class is added, unless there is none.
        kind: ``"causal_norm"``, or the paper's ablations ``"cosine"`` and ``"capsule"``.
        num_heads: K.
        tau: temperature τ > 0.
        gamma: weight offset γ ≥ 0, without effect for ``"cosine"``.
        background: False for image classification: C outputs.
        prior_logit: added to the logits of all foreground classes alike. Losses that train every
            class for itself need scores that start low; a softmax needs 0.

    Raises:
        ValueError: a value outside its range.

    >>> import torch
    >>> from tde_det import TDE, CausalNormClassifier
    >>> _ = torch.manual_seed(0)
    >>> classifier, tde = CausalNormClassifier(8, num_classes=3), TDE(8, alpha=1.5)
    >>> x, labels = torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 3, 3])  # class 3: background
    >>> logits = classifier(x)  # in training: the loss takes these
    >>> tde.update_mean(x, is_foreground=labels < 3)  # once per training step
    >>> adjusted = tde(x, logits, classifier.class_weight())  # at inference
    >>> adjusted.shape
    torch.Size([6, 4])
    >>> torch.allclose(adjusted.softmax(1)[:, 3], logits.softmax(1)[:, 3])  # background stays
    True
    """

    prior: Optional[Tensor]

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        *,
        kind: str = "causal_norm",
        num_heads: int = 2,
        tau: float = 16.0,
        gamma: float = 1 / 32,
        background: bool = True,
        prior_logit: float = 0.0,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be positive, got {tau}")
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        check_heads(feature_dim, num_heads)
        super().__init__(num_classes)
        self.kind, self.num_heads, self.tau = kind, num_heads, tau
        self.gamma = 0.0 if kind == "cosine" else gamma
        self.feature_offset = 1.0 if kind == "capsule" else 0.0
        self.weight = nn.Parameter(torch.empty(num_classes + background, feature_dim))
        self.reset_parameters()
        prior = torch.zeros(num_classes + background)
        prior[:num_classes] = prior_logit
        self.register_buffer("prior", prior if prior_logit else None, persistent=False)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        # As the authors. Detectron2's N(0, 0.01²) would start at half this norm, nearer to γ.
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def class_weight(self) -> Tensor:
        """τ/K · f_i·wᵢᵏ/(‖wᵢᵏ‖+γ), ``Tensor[C+1, D]``: logits are one matrix product with it."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        weight = self.tau / self.num_heads * normalize(weight, self.num_heads, self.gamma)
        return self.scale_classes(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Box features ``Tensor[N, D]`` → logits ``Tensor[N, C+1]``, background last."""
        # Norms in at least float32: the sum of D squared half-precision features overflows.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        features = normalize(x, self.num_heads, self.feature_offset)
        return F.linear(features, self.class_weight(), self.prior)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Accept a linear layer's weights, without its bias."""
        if state_dict.pop(prefix + "bias", None) is not None:
            logging.getLogger(__name__).warning(
                "%sweight comes from a linear classifier. Its bias is dropped: normalised "
                "classifiers have none.",
                prefix,
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
