"""Settings of the box classifier that act at inference alone, and box predictors with them."""

import copy
import dataclasses
from typing import Any, List, Optional, Sequence

from torch import Tensor, nn

from ..build_loss import check_distribution
from ..causal_norm import CausalNormClassifier
from ..errors import InputError
from ..post_hoc import Calibration, calibrate, check_at_least_0


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to turn box features into scores; what it does not name stays as in the config.

    Attributes:
        method: ``"alpha"`` (MODEL.TDE.ALPHA), ``"auto_alpha"`` (MODEL.TDE.AUTO_ALPHA),
            ``"tau_norm"`` or ``"norcal"`` (see :mod:`tde_det.post_hoc`).
        value: α, τ or γ; None for ``"auto_alpha"``.
        exempt: MODEL.TDE.BACKGROUND_EXEMPT for the first two; None to leave it.
    """

    method: str
    value: Optional[float] = None
    exempt: Optional[bool] = None

    def __str__(self) -> str:
        name = self.method if self.value is None else f"{self.method} {self.value:g}"
        return f"{name}, background not exempt" if self.exempt is False else name


def list_settings(
    alphas: Sequence[float] = (),
    auto_alpha: bool = False,
    not_exempt: bool = False,
    tau_norm: Sequence[float] = (),
    norcal: Sequence[float] = (),
) -> List[Setting]:
    """The settings asked for, each once; with ``not_exempt``, those of TDE once more without.

    Raises:
        InputError: there are none, or a value is out of range.
    """
    for name, values in (("α", alphas), ("τ", tau_norm), ("γ", norcal)):
        for value in values:
            check_at_least_0(name, value)
    tde = [Setting("alpha", value) for value in alphas]
    tde += [Setting("auto_alpha")] if auto_alpha else []
    if not_exempt and not tde:
        raise InputError("--not-exempt goes with --alpha or --auto-alpha, which it repeats")
    tde += [dataclasses.replace(setting, exempt=False) for setting in tde if not_exempt]
    others = [Setting("tau_norm", value) for value in tau_norm]
    others += [Setting("norcal", value) for value in norcal]
    if not tde + others:
        raise InputError(
            "no setting to evaluate: give --alpha, --auto-alpha, --tau-norm or --norcal"
        )
    return list(dict.fromkeys(tde + others))


def predictor_with(predictor: nn.Module, setting: Setting, counts: Optional[Tensor]) -> nn.Module:
    """A copy of a box predictor, or of the list of a cascade's, with a setting.

    Args:
        predictor: ``roi_heads.box_predictor``.
        setting: to apply.
        counts: ``Tensor[C]``, training images of every class, for ``"norcal"``.

    Raises:
        InputError: the setting does not fit the classifier.
    """
    own: Any = copy.deepcopy(predictor)
    value: Any = setting.value
    if setting.method in ("alpha", "auto_alpha"):
        classifiers = [m for m in own.modules() if isinstance(m, CausalNormClassifier)]
        if not classifiers:
            raise InputError(
                f"{setting}: TDE needs normalised logits, but this model's classifier is "
                'MODEL.TDE.CLASSIFIER "linear" or Detectron2\'s own'
            )
        for part in own.modules():
            if hasattr(part, "activation") and hasattr(part, "cls_score"):
                check_distribution(part.activation, "this model's loss")
        for classifier in classifiers:
            _set_alpha(classifier, setting)
        return own
    if any(isinstance(part, Calibration) for part in own.modules()):
        raise InputError(
            f"{setting}: this checkpoint is calibrated already: take the one it was made from"
        )
    if setting.method == "tau_norm":
        calibrate(own, "tau_norm", tau=value)
    else:
        calibrate(own, "norcal", gamma=value, counts=counts)
    return own


def _set_alpha(classifier: CausalNormClassifier, setting: Setting) -> None:
    classifier.auto_alpha = setting.method == "auto_alpha"
    if setting.exempt is not None:
        classifier.background_exempt = setting.exempt
    if setting.value is not None:
        classifier.alpha = setting.value
        return
    if classifier.alpha == 0:  # which would turn TDE off
        classifier.alpha = 1.0
    if not bool(classifier.feature_mean.any()):
        raise InputError(
            f"{setting}: this checkpoint has no feature mean, from which α is chosen; train with "
            "a normalised classifier, or see tools/calibrate.py --method tde"
        )
    classifier.effective_alpha()
