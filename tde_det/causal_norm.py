"""De-confounded logits, their total direct effect (TDE), and the classifier made of both.

Notation, used throughout this package:

    N       boxes (RoIs)                     C       foreground classes; background is class C
    D       feature channels                 K       heads: D is cut into K equal chunks
    x       box features, Tensor[N, D]       w       class weights, Tensor[C+1, D]
    d̂       direction of the mean feature    τ, γ, α temperature, weight offset, TDE strength

    Y_i   = τ/K · Σ_k  wᵢᵏ·xᵏ / ((‖wᵢᵏ‖+γ)·‖xᵏ‖)                        factual logits
    TDE_i = Y_i − α·τ/K · Σ_k cos(xᵏ, d̂ᵏ) · (wᵢᵏ·d̂ᵏ)/(‖wᵢᵏ‖+γ)          inference only

Source: Tang et al., NeurIPS 2020, on de-confounded training, total direct effect inference and
background-exempted inference. This module is plain PyTorch and knows nothing of Detectron2.
"""

import logging
import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .feature_mean import FeatureMean, head_cosine, mean_direction, normalize, split_heads
from .scaled_linear import scale_classes

CLASSIFIERS = ("causal_norm", "cosine", "capsule")


def class_projection(weight: Tensor, feature_mean: Tensor, num_heads: int) -> Tensor:
    """wᵢᵏ·d̂ᵏ of every class and head: ``Tensor[C+1, D]``, ``Tensor[D]`` → ``Tensor[C+1, K]``."""
    return (split_heads(weight, num_heads) * mean_direction(feature_mean, num_heads)).sum(dim=-1)


def tde_logits(logits: Tensor, cosine: Tensor, projection: Tensor, alpha: float) -> Tensor:
    """Remove α times the effect of the mean direction, in O(N·K·C).

    Args:
        logits: ``Tensor[N, C+1]``, factual Y.
        cosine: ``Tensor[N, K]``, cos(xᵏ, d̂ᵏ).
        projection: ``Tensor[C+1, K]``, τ/K·(wᵢᵏ·d̂ᵏ)/(‖wᵢᵏ‖+γ).
        alpha: α ≥ 0.
    """
    return torch.addmm(logits, cosine, projection.t(), alpha=-alpha)


def exempt_background(logits: Tensor, tde: Tensor) -> Tensor:
    """Let TDE reorder the foreground classes and keep every background probability.

    With p = softmax(Y) and q = softmax(TDE): score_bg = p_bg, score_i = (1−p_bg)·q_i/(1−q_bg).
    In logits that is t_fg − lse(t_fg) + lse(y_fg) beside the factual background logit. The authors'
    code returns probabilities here, to which the detector then applies softmax a second time.

    Args:
        logits: ``Tensor[N, C+1]``, factual Y.
        tde: ``Tensor[N, C+1]``.

    Returns:
        ``Tensor[N, C+1]`` logits; exactly ``logits`` where ``tde`` equals it.
    """
    y_fg, t_fg = logits[:, :-1], tde[:, :-1]
    shift = torch.logsumexp(y_fg, dim=1, keepdim=True) - torch.logsumexp(t_fg, dim=1, keepdim=True)
    return torch.cat([t_fg + shift, logits[:, -1:]], dim=1)


def exempted_tde_(
    logits: Tensor, cosine: Tensor, projection: Tensor, alpha: float, probs: Tensor
) -> None:
    """``exempt_background(logits, tde_logits(…))`` and its softmax, in as few passes as it takes.

    In place, with two exponentials an element instead of four. For logits of one row no more than
    85 apart, so that no probability leaves float32.

    Args:
        logits: ``Tensor[N, C+1]``, factual Y; overwritten with the result.
        cosine: ``Tensor[N, K]``, see :func:`tde_logits`.
        projection: ``Tensor[C+1, K]``, see :func:`tde_logits`; that of the background is 0, so that
            it keeps its factual logit.
        alpha: α.
        probs: ``Tensor[N, C+1]``, overwritten with the softmax of the result.
    """
    torch.softmax(logits, dim=1, out=probs)
    p_bg, p_fg = probs[:, -1:].clone(), probs[:, :-1].sum(dim=1, keepdim=True)
    logits.addmm_(cosine, projection.t(), alpha=-alpha)
    torch.softmax(logits, dim=1, out=probs)
    ratio = p_fg / probs[:, :-1].sum(dim=1, keepdim=True)  # (1−p_bg)/(1−q_bg)
    # lse(y_fg) − lse(t_fg), in which the background logit of both cancels
    logits[:, :-1] += (ratio * probs[:, -1:] / p_bg).log()
    probs *= ratio
    probs[:, -1:] = p_bg


class CausalNormClassifier(FeatureMean):
    """Multi-head normalised classifier: factual logits in training, TDE logits in inference.

    Args:
        feature_dim: D.
        num_classes: C; the background class is added, unless there is none.
        kind: ``"causal_norm"``, or the paper's ablations ``"cosine"`` (γ = 0) and ``"capsule"``
            (feature norm n squashed to n/(1+n)).
        num_heads: K.
        tau: temperature τ > 0.
        gamma: weight offset γ ≥ 0, without effect for ``"cosine"``.
        mu: decay μ of the feature mean, in [0, 1).
        alpha: TDE strength α ≥ 0; 0 turns TDE off.
        auto_alpha: choose α such that α · mean foreground cos(x, d̂) = 1, the authors' rule.
        background_exempt: keep background probabilities factual.
        background: False for image classification: C outputs, and nothing to exempt.
        prior_logit: added to the logits of all foreground classes alike, where those trained each
            for itself should start; a softmax needs none.

    Raises:
        InputError: a value outside its range.
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
        mu: float = 0.9998,
        alpha: float = 1.5,
        auto_alpha: bool = False,
        background_exempt: bool = True,
        background: bool = True,
        prior_logit: float = 0.0,
    ):
        if kind not in CLASSIFIERS:
            raise InputError(f"MODEL.TDE.CLASSIFIER must be one of {CLASSIFIERS}, got {kind!r}")
        if not 0 < tau < math.inf:
            raise InputError(f"MODEL.TDE.TAU must be positive, got {tau}")
        for key, value in (("GAMMA", gamma), ("ALPHA", alpha)):
            if not 0 <= value < math.inf:
                raise InputError(f"MODEL.TDE.{key} must be at least 0, got {value}")
        super().__init__(feature_dim, num_heads, mu)
        self.weight = nn.Parameter(torch.empty(num_classes + background, feature_dim))
        self.reset_parameters()
        self.kind = kind
        self.tau = tau
        self.gamma = 0.0 if kind == "cosine" else gamma
        self.feature_offset = 1.0 if kind == "capsule" else 0.0
        self.alpha = alpha
        self.auto_alpha = auto_alpha
        self.background_exempt = background_exempt and background
        self.num_classes = num_classes
        prior = torch.zeros(num_classes + background)
        prior[:num_classes] = prior_logit
        self.register_buffer("prior", prior if prior_logit else None, persistent=False)
        self.register_parameter("class_scale", None)
        self._prepared: Optional[Tuple[Tuple, Tuple[Tensor, Tensor, float]]] = None

    def reset_parameters(self) -> None:
        """Draw the class weights anew."""
        # As the authors. Detectron2's N(0, 0.01²) would start at half this norm, nearer to γ.
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Box features ``Tensor[N, D]`` → logits ``Tensor[N, C+1]``, background last."""
        # Norms in at least float32: the sum of D squared half-precision features overflows.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        features = normalize(x, self.num_heads, self.feature_offset)
        if self.training:
            return F.linear(features, self.scaled_weight(), self.prior)
        if torch.jit.is_scripting():
            weight, projection, alpha = self._prepare()
        else:
            weight, projection, alpha = self._prepare_once()
        logits = F.linear(features, weight, self.prior)
        if alpha == 0:
            return logits
        logits = logits.to(x.dtype)
        # |Y| ≤ τ and |TDE| ≤ τ·(1+α), but for rounding.
        bounded = 1.01 * self.tau * (2 + alpha) < 85 and self.class_scale is None
        if torch.jit.is_scripting() or torch.jit.is_tracing():
            bounded = False
        if not (bounded and self.background_exempt) or logits.requires_grad:
            cosine = head_cosine(x, self.feature_mean.to(x.dtype), self.num_heads)
            tde = tde_logits(logits, cosine, projection, alpha)
            return exempt_background(logits, tde) if self.background_exempt else tde
        return self._forward_fast(logits, x, projection, alpha)

    @torch.jit.unused
    def _forward_fast(self, logits: Tensor, x: Tensor, projection: Tensor, alpha: float) -> Tensor:
        """Factual logits → exempted TDE logits, which carry their softmax as ``probabilities``.

        Whoever needs it (``predict_probs``) need not compute it again; it is lost, as it should be,
        with anything done to the logits.
        """
        probs = torch.empty_like(logits)
        with torch.autocast(x.device.type, enabled=False):  # it pays for the product above only
            cosine = head_cosine(x, self.feature_mean.to(x.dtype), self.num_heads)
            exempted_tde_(logits, cosine, projection, alpha, probs)
        logits.probabilities = probs  # type: ignore[attr-defined]
        return logits

    def scaled_weight(self) -> Tensor:
        """τ/K · wᵏ/(‖wᵏ‖+γ): ``Tensor[C+1, D]``, so that logits are one matrix product."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        weight = self.tau / self.num_heads * normalize(weight, self.num_heads, self.gamma)
        return scale_classes(weight, self.class_scale)

    def effective_alpha(self) -> float:
        """The α that inference uses.

        Raises:
            InputError: ``auto_alpha`` without a usable running cosine.
        """
        if not self.auto_alpha or self.alpha == 0 or not bool(self.feature_mean.any()):
            return self.alpha
        cosine_sum = float(self.foreground_cosine[0])
        count = float(self.foreground_cosine[1])
        if count == 0 or cosine_sum <= 0:
            raise InputError(
                "MODEL.TDE.AUTO_ALPHA needs a positive running mean of cos(x, d̂), kept in training "
                "as `foreground_cosine`; this checkpoint has none. Set MODEL.TDE.AUTO_ALPHA False."
            )
        return count / cosine_sum

    def _prepare(self) -> Tuple[Tensor, Tensor, float]:
        """What inference needs and no image changes: scaled weight, its projection on d̂, and α.

        An exempt background has projection 0: TDE leaves its logit as it is.
        """
        weight = self.scaled_weight()
        mean = self.feature_mean.to(weight.dtype)
        projection = class_projection(weight, mean, self.num_heads)
        if self.background_exempt:
            projection = torch.cat([projection[:-1], torch.zeros_like(projection[-1:])])
        return weight, projection, self.effective_alpha()

    @torch.jit.unused
    def _prepare_once(self) -> Tuple[Tensor, Tensor, float]:
        """``_prepare``, repeated only when a weight, buffer or setting has changed."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self._prepare()
        with torch.inference_mode(False), torch.no_grad():
            tensors = [self.weight, self.feature_mean, self.foreground_cosine]
            if self.class_scale is not None:
                tensors.append(self.class_scale)
            if any(t.is_inference() for t in tensors):  # they count no versions
                return self._prepare()
            settings = (self.num_heads, self.tau, self.gamma, self.alpha, self.auto_alpha)
            key = (
                settings,
                self.background_exempt,
                *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors),
            )
            if self._prepared is None or self._prepared[0] != key:
                self._prepared = (key, self._prepare())
            return self._prepared[1]

    def learn_class_scale(self) -> None:
        """Add the parameter ``class_scale``, ``Tensor[C]`` of ones; see ``scaled_linear.py``."""
        self.class_scale = nn.Parameter(self.weight.new_ones(self.num_classes))

    def train(self, mode: bool = True) -> "CausalNormClassifier":
        """Also forget what inference prepared: writes through ``.data`` count no versions."""
        self._prepared = None
        return super().train(mode)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Accept a linear layer's state: its bias is dropped, buffers it lacks keep their value."""
        if prefix + "class_scale" in state_dict and self.class_scale is None:
            self.learn_class_scale()
        bias = prefix + "bias"
        if bias in state_dict:
            new = [n for n, _ in self.named_buffers() if prefix + n not in state_dict]
            for name in new:
                state_dict[prefix + name] = getattr(self, name)
            del state_dict[bias]
            logging.getLogger(__name__).warning(
                "%s comes from a linear classifier. Dropped: %s (normalised classifiers have no "
                "bias). New: %s (zero until training has seen foreground boxes; until then "
                "inference is factual).",
                prefix + "weight",
                bias,
                ", ".join(prefix + n for n in new) or "nothing",
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"{self.weight.shape[1]}, {self.num_classes}, kind={self.kind!r}, "
            f"num_heads={self.num_heads}, tau={self.tau}, gamma={self.gamma}, alpha={self.alpha}, "
            f"auto_alpha={self.auto_alpha}, background_exempt={self.background_exempt}"
        )
