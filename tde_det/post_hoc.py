"""Other scores for a trained classifier, with nothing trained: τ-normalisation, NCM and NorCal.

Notation: y_i are the logits of the C foreground classes and y_bg that of the background, as the
classifier gives them (with TDE, if it has TDE); w_i, b_i class weights and biases; x box features;
μ_i the mean feature of class i and c that of all foreground boxes; n_i the class's training count.

    τ-normalisation   t_i = w_i·x / ‖w_i‖^τ + b_i = s_i·y_i + (1 − s_i)·b_i,   s_i = ‖w_i‖^−τ
    NCM               t_i = T · cos(x − c, μ_i − c)
    NorCal            t_i = y_i − γ·log n_i

Each only reorders foreground classes: score_i = (1 − p_bg) · softmax(t)_i beside the factual
background probability p_bg, the exemption that TDE inference uses too. To rescale the background
like a class, or to let it take part in the renormalisation, changes which boxes are detected at
all. (NorCal's authors do the latter: ``background="paper"``.)

The fourth post-hoc method, TDE for a model trained without the moving average, needs the mean
direction only; it and NCM's means come from one pass of :class:`ForegroundStatistics`.

Sources: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR
2020; Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation",
NeurIPS 2021. This module is plain PyTorch and knows nothing of Detectron2.
"""

import math
from typing import Any, List, Mapping, Optional, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .causal_norm import CausalNormClassifier, exempt_background
from .errors import InputError
from .feature_mean import mean_direction, normalize, split_heads
from .scaled_linear import scale_classes

METHODS = ("tau_norm", "ncm", "norcal")

# "none": image classification, there is no background column.
BACKGROUNDS = ("exempt", "paper", "none")


class Calibration(nn.Module):
    """From a classifier's logits (and features) to calibrated logits. Saved with the checkpoint.

    Args:
        scale, offset: ``Tensor[C]``, t = scale·y + offset.
        background: ``"exempt"`` keeps the background probability, ``"paper"`` the background logit
            alone; ``"none"`` if the logits have no background column.
        center, class_means: ``Tensor[D]`` and ``Tensor[C, D]``: then, instead of y, the cosine of
            x − center and class_means is scaled.
    """

    scale: Tensor
    offset: Tensor
    center: Optional[Tensor]
    class_means: Optional[Tensor]

    def __init__(
        self,
        scale: Tensor,
        offset: Tensor,
        background: str = "exempt",
        center: Optional[Tensor] = None,
        class_means: Optional[Tensor] = None,
    ):
        super().__init__()
        if background not in BACKGROUNDS:
            raise InputError(f"background must be one of {BACKGROUNDS}, got {background!r}")
        self.background = background
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)
        self.register_buffer("background_kind", torch.tensor(BACKGROUNDS.index(background)))
        self.register_buffer("center", center)
        self.register_buffer("class_means", class_means)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], prefix: str) -> "Optional[Calibration]":
        """The calibration whose tensors have this prefix in a state dict; None if it has none."""
        tensors = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if not tensors:
            return None
        tensors = {k: v.detach().clone() for k, v in tensors.items()}
        background = BACKGROUNDS[int(tensors.pop("background_kind"))]
        return cls(**tensors, background=background)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """Features ``Tensor[N, D]`` and logits ``Tensor[N, C+1]`` → calibrated logits."""
        # In at least float32: the exemption is a difference of logarithms.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        num_classes = self.scale.shape[0]
        t = logits[:, :num_classes]
        center, means = self.center, self.class_means
        if center is not None and means is not None:
            features = normalize(x.to(t.dtype) - center.to(t.dtype), 1)
            t = F.linear(features, normalize(means.to(t.dtype), 1)).to(t.dtype)
        t = t * self.scale.to(t.dtype) + self.offset.to(t.dtype)
        if self.background == "none":
            return t
        if self.background == "paper":
            return torch.cat([t, logits[:, num_classes:]], dim=1)
        # What all classes have in common drops out; here, lest a large t cost digits of p_bg.
        t = t - (t.amax(1, keepdim=True) - logits[:, :num_classes].amax(1, keepdim=True))
        return exempt_background(logits, torch.cat([t, logits[:, num_classes:]], dim=1))


def check_at_least_0(name: str, value: float) -> None:
    """Raise :class:`InputError` for a negative or infinite value."""
    if not 0 <= value < math.inf:
        raise InputError(f"{name} must be at least 0, got {value:g}")


def tau_norm(
    weight: Tensor, bias: Optional[Tensor], tau: float, background: str = "exempt"
) -> Calibration:
    """τ-normalisation of a linear classifier's foreground weights.

    Args:
        weight: ``Tensor[C, D]``, without the background's row.
        bias: ``Tensor[C]`` or None.
        tau: τ ≥ 0; 0 changes nothing, 1 gives unit weights.
        background: ``"exempt"`` or ``"none"``.
    """
    check_at_least_0("tau", tau)
    norm = torch.linalg.vector_norm(weight.detach().double(), dim=1)
    scale = torch.where(norm > 0, norm, torch.ones_like(norm)) ** -tau
    offset = torch.zeros_like(scale) if bias is None else (1 - scale) * bias.detach().double()
    return Calibration(scale.to(weight.dtype), offset.to(weight.dtype), background)


def norcal(counts: Tensor, gamma: float, background: str = "exempt") -> Calibration:
    """NorCal: the score of class i divided by n_i^γ.

    Args:
        counts: ``Tensor[C]``, n_i; the authors count images. A class that was never seen counts as
            one seen once, as it does for the losses: dividing by 0 would make it score always.
        gamma: γ ≥ 0; 0 changes nothing.
        background: ``"exempt"``; ``"paper"``, where p_bg takes part in the renormalisation;
            ``"none"``.

    Raises:
        InputError: γ is negative, or no class has a count.
    """
    check_at_least_0("gamma", gamma)
    if not bool((counts > 0).any()):
        raise InputError("NorCal divides by class counts, but there are none")
    offset = -gamma * counts.detach().double().clamp(min=1).log()
    offset = offset.float()
    return Calibration(torch.ones_like(offset), offset, background)


class ForegroundStatistics:
    """Sums over the foreground boxes of one pass over training data.

    Args:
        num_classes: C; other labels are background.
        feature_dim: D.
        num_heads: K of the classifier whose cosine is wanted; 1 for others.
        device: where the features are.

    Attributes:
        sums: ``Tensor[C, D]``, per class Σ x.
        counts: ``Tensor[C]``.
        unit_sum: ``Tensor[D]``, Σ xᵏ/‖xᵏ‖.
    """

    def __init__(self, num_classes: int, feature_dim: int, num_heads: int = 1, device=None):
        self.num_heads = num_heads
        options = {"dtype": torch.float64, "device": device}
        self.sums = torch.zeros(num_classes, feature_dim, **options)
        self.counts = torch.zeros(num_classes, **options)
        self.unit_sum = torch.zeros(feature_dim, **options)

    @torch.no_grad()
    def add(self, x: Tensor, labels: Tensor) -> None:
        """Add a batch: ``Tensor[N, D]`` and ``Tensor[N]``. Non-finite boxes do not count."""
        keep = (labels >= 0) & (labels < len(self.counts)) & torch.isfinite(x).all(dim=1)
        x, labels = x[keep].double(), labels[keep]
        self.sums.index_add_(0, labels, x)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.unit_sum += normalize(x, self.num_heads).sum(dim=0)

    def all_reduce(self) -> None:
        """Add up what all ranks have seen; each must call this once."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for tensor in (self.sums, self.counts, self.unit_sum):
                dist.all_reduce(tensor)

    def mean(self) -> Tensor:
        """Mean foreground feature ``Tensor[D]``.

        Raises:
            InputError: there was no foreground box.
        """
        if not self.counts.any():
            raise InputError("no foreground box in the training images seen: take more of them")
        return self.sums.sum(dim=0) / self.counts.sum()

    def mean_cosine(self) -> float:
        """Mean of cos(xᵏ, d̂ᵏ) over foreground boxes and heads, d̂ that of :meth:`mean`."""
        mean = self.unit_sum / self.counts.sum()
        direction = mean_direction(self.mean(), self.num_heads)
        cosine = (split_heads(mean.unsqueeze(0), self.num_heads)[0] * direction).sum(dim=1)
        return float(cosine.mean())


def ncm(
    statistics: ForegroundStatistics, temperature: float = 16.0, background: str = "exempt"
) -> Calibration:
    """Nearest class mean, by cosine similarity to centred means. Classes never seen score 0.

    Args:
        statistics: of one pass over training data.
        temperature: T > 0. It does not change which class is nearest, but how sure scores are.
        background: ``"exempt"`` or ``"none"``.

    Raises:
        InputError: T is not positive, or no box has been seen.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be positive, got {temperature:g}")
    center, counts = statistics.mean(), statistics.counts
    means = statistics.sums / counts.clamp(min=1).unsqueeze(1) - center
    offset = torch.where(counts > 0, 0.0, -math.inf).float()
    scale = torch.full_like(offset, temperature)
    return Calibration(scale, offset, background, center.float(), means.float())


def fill_feature_mean(
    classifier: CausalNormClassifier, statistics: ForegroundStatistics
) -> Optional[float]:
    """Post-hoc TDE: put one pass's mean direction and mean cosine where training keeps its own.

    Both are scaled to what an endless training with these means would have left, so that training
    may go on.

    Returns:
        the α with which α · mean foreground cosine = 1; None if the mean cosine is not positive.

    Raises:
        InputError: no box has been seen.
    """
    cosine, weight = statistics.mean_cosine(), 1 / (1 - classifier.mu)
    classifier.feature_mean.copy_(weight * statistics.mean())
    classifier.foreground_cosine.copy_(torch.tensor([weight * cosine, weight]))
    return 1 / cosine if cosine > 0 else None


def box_predictors(model: nn.Module) -> List[Any]:
    """The modules of a model that can be calibrated, in the order of the cascade's stages."""
    return [module for module in model.modules() if hasattr(module, "calibration")]


def calibrate(
    model: nn.Module,
    method: Optional[str],
    *,
    tau: float = 0.5,
    gamma: float = 0.6,
    counts: Optional[Tensor] = None,
    statistics: Optional[Sequence[ForegroundStatistics]] = None,
    temperature: float = 16.0,
    background: str = "exempt",
) -> None:
    """Set or replace the calibration of every box predictor, in memory.

    Args:
        model: a detector of this package.
        method: ``"tau_norm"``, ``"norcal"``, ``"ncm"``, or None to remove what is there.
        tau, gamma, counts, statistics (one per predictor), temperature: of the functions above,
            as the method needs them.
        background: see :class:`Calibration`.

    Raises:
        InputError: the model cannot be calibrated by this method, or a value is out of range.
    """
    predictors = box_predictors(model)
    made: List[Optional[Calibration]] = []
    for i, predictor in enumerate(predictors):
        check_calibratable(predictor, method)
        classifier, calibration = predictor.cls_score, None
        if method == "tau_norm":
            scales = getattr(classifier, "class_scale", None)  # learned ones, if it has any
            weight = scale_classes(classifier.weight, scales)[:-1]
            calibration = tau_norm(weight, classifier.bias[:-1], tau, background)
        elif method == "norcal":
            if counts is None or len(counts) != predictor.num_classes:
                raise InputError("NorCal needs the training count of every class of the model")
            calibration = norcal(counts, gamma, background)
        elif method == "ncm":
            if statistics is None:
                raise InputError("NCM needs the statistics of a pass over training data")
            calibration = ncm(statistics[i], temperature, background)
        made.append(calibration.to(classifier.weight.device) if calibration else None)
    for predictor, calibration in zip(predictors, made):
        predictor.calibration = calibration


def check_calibratable(predictor: Any, method: Optional[str]) -> None:
    """Raise :class:`InputError` where a method does not fit a box predictor."""
    if method is None:
        return
    if method not in METHODS:
        raise InputError(f"the calibration method must be one of {METHODS}, got {method!r}")
    if predictor.activation != "softmax":
        raise InputError(
            f"{method} reorders a softmax over classes and background, but MODEL.LONG_TAIL.LOSS "
            f"makes the scores of this model {predictor.activation}"
        )
    if method == "tau_norm" and isinstance(predictor.cls_score, CausalNormClassifier):
        raise InputError(
            "tau_norm rescales the weights of a linear classifier, but MODEL.TDE.CLASSIFIER is "
            f'"{predictor.cls_score.kind}", which divides by their norms already. Take norcal, or '
            'a "linear" checkpoint.'
        )
