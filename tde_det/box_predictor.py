"""Detectron2's box predictor with long-tailed losses, and with a de-confounded classifier."""

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.structures import Instances
from torch import Tensor, nn

from .build_loss import build_loss, federated_arguments
from .causal_norm import CausalNormClassifier
from .errors import InputError
from .inference.box_inference import OutputLayers
from .losses import ClassificationLoss, prior_logit, scores_from_logits
from .post_hoc import Calibration
from .scaled_linear import ScaledLinear


def check_softmax_loss(use_sigmoid_ce: Optional[bool], use_fed_loss: Optional[bool]) -> None:
    """Refuse losses that TDE cannot go with.

    Raises:
        InputError: one of them is asked for.
    """
    if use_sigmoid_ce or use_fed_loss:
        raise InputError(
            "TDE compares softmax distributions and keeps the background's probability; "
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and USE_FED_LOSS train without a softmax "
            "background to exempt. Set both to False, or MODEL.TDE.ALPHA 0 (no TDE), or "
            'MODEL.TDE.CLASSIFIER "linear".'
        )


class LongTailOutputLayers(OutputLayers):
    """A linear classifier trained by any loss of :mod:`tde_det.losses`; deltas by Detectron2.

    Attributes:
        calibration: of the logits in inference, or None; see :func:`tde_det.post_hoc.calibrate`.
        loaded_activation: that of the loss which the loaded classifier was trained with, the
            config's where the checkpoint does not say; None before one is loaded.
        observer: called with features ``Tensor[N, D]`` and labels ``Tensor[N]`` in place of the
            losses, if it is not None: a pass over training data in which nothing changes.

    Args:
        input_shape: shape of the box feature.
        classification_loss: in place of Detectron2's own, or None.
        prior_prob: see ``MODEL.LONG_TAIL.PRIOR_PROB``.
        kwargs: those of ``FastRCNNOutputLayers``.
    """

    if TYPE_CHECKING:  # TorchScript takes no such annotation
        cls_score: Any  # nn.Linear, ScaledLinear or CausalNormClassifier
        calibration: Any  # Optional[Calibration]
        num_classes: int
        observer: Optional[Callable[[Any, Tensor], None]]
        loaded_activation: Optional[str]
        trained_for: Optional[Tensor]
    # Box features of the running training iteration: `forward` has them, `losses` the labels.
    _features: Optional[Tensor]

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        classification_loss: Optional[ClassificationLoss] = None,
        prior_prob: Optional[float] = None,
        **kwargs,
    ):
        if classification_loss is not None:
            # Detectron2 then calls sigmoid_cross_entropy_loss, the only loss that is a method.
            kwargs["use_sigmoid_ce"] = True
        super().__init__(input_shape, **kwargs)
        self.classification_loss = classification_loss
        self.activation = "sigmoid" if self.use_sigmoid_ce else "softmax"
        if classification_loss is not None:
            self.activation = classification_loss.activation
        self.prior_prob = prior_prob
        self._features, self.observer, self.calibration = None, None, None
        self._start_at_prior()
        # The checkpoint says what its scores are, unless it is like any of Detectron2's.
        marked = classification_loss is not None or self.activation != "softmax"
        self.register_buffer("trained_for", self._mark() if marked else None)
        self.loaded_activation = None

    @classmethod
    def from_config(cls, cfg, input_shape):
        args = super().from_config(cfg, input_shape)
        args["classification_loss"] = build_loss(cfg)
        if cfg.MODEL.LONG_TAIL.LOSS != "cross_entropy":
            args["prior_prob"] = cfg.MODEL.LONG_TAIL.PRIOR_PROB
        if cfg.MODEL.LONG_TAIL.LOSS == "federated":
            args.update(federated_arguments(cfg))
        return args

    def _mark(self) -> Tensor:
        """The activation as a tensor, padded, since Detectron2 compares shapes."""
        return torch.tensor(list(self.activation.ljust(32).encode()), dtype=torch.uint8)

    def reset_classifier(self) -> None:
        """Draw the classifier's weights anew, as Detectron2 does."""
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        self._start_at_prior()
        self._forget_class_scale()

    def _forget_class_scale(self) -> None:
        """Put the learned class scales of an LWS checkpoint, if it was one, back to 1."""
        if self.has_class_scale():
            nn.init.ones_(self.cls_score.class_scale)

    def has_class_scale(self) -> bool:
        """Whether classes are scaled by what LWS learned."""
        return getattr(self.cls_score, "class_scale", None) is not None

    def prior_logit(self) -> float:
        """Where foreground logits start, so that classes trained each for itself score low."""
        if self.prior_prob is None or "softmax" in self.activation:
            return 0.0
        return prior_logit(self.prior_prob, self.activation)

    def _start_at_prior(self) -> None:
        if self.prior_logit():
            nn.init.constant_(self.cls_score.bias[: self.num_classes], self.prior_logit())

    def learn_class_scale(self) -> None:
        """Scale the foreground classes by a new parameter ``cls_score.class_scale``, 1 at first."""
        self.cls_score = ScaledLinear(self.cls_score, self.num_classes)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Box features ``Tensor[N, ...]`` → logits ``Tensor[N, C+1]`` and box deltas."""
        if x.dim() > 2:
            x = torch.flatten(x, start_dim=1)
        logits = self.cls_score(x)
        if self.training:
            self._features = x.detach()
        elif self.calibration is not None:
            logits = self.calibration(x, logits)
        return logits, self.bbox_pred(x)

    def losses(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> Dict[str, Tensor]:
        """Detectron2's losses, or none if there is an observer.

        Raises:
            InputError: the model is calibrated, which fits the weights it was calibrated with.
        """
        self.check_trainable()
        features, self._features = self._features, None
        labels = torch.cat([p.gt_classes for p in proposals] or [torch.zeros(0)])
        if self.observer is not None:
            self.observer(features, labels)
            return {}
        self.before_losses(features, labels)
        return super().losses(predictions, proposals)

    def check_trainable(self) -> None:
        """Refuse to train what was calibrated for inference.

        Raises:
            InputError: it was.
        """
        if self.calibration is not None:
            raise InputError(
                "this checkpoint is calibrated, for inference: train the one it was made from"
            )

    def check_activation(self) -> None:
        """Refuse to infer with a classifier that was trained for scores of another kind.

        Raises:
            InputError: it was.
        """
        if self.loaded_activation not in (None, self.activation):
            raise InputError(
                f"the checkpoint is trained for {self.loaded_activation} scores, this config makes "
                f"them {self.activation}: set MODEL.LONG_TAIL.LOSS to the loss of its training"
            )

    def before_losses(self, features: Optional[Tensor], labels: Tensor) -> None:
        """For subclasses: what to do with a training iteration's box features and labels."""

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """The classification loss that Detectron2's ``losses`` asks for: ours, if there is one."""
        if self.classification_loss is None:
            return super().sigmoid_cross_entropy_loss(pred_class_logits, gt_classes)
        # Detectron2 makes the labels of no image at all floating point and leaves them on the CPU.
        return self.classification_loss(pred_class_logits, gt_classes.to(pred_class_logits.device))

    def predict_probs(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> List[Tensor]:
        """Scores per image, ``Tensor[N, C+1]``: computed from the logits, or what they carry."""
        logits, _ = predictions
        counts = [len(p) for p in proposals]
        if not torch.jit.is_scripting():  # noqa: SIM102 (the compiler takes no other form)
            if self.activation == "softmax" and hasattr(logits, "probabilities"):
                return logits.probabilities.split(counts)
        return scores_from_logits(logits, self.activation).split(counts)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Accept the checkpoint of a classifier with learned class scales, or calibrated."""
        if prefix + "cls_score.class_scale" in state_dict and type(self.cls_score) is nn.Linear:
            self.learn_class_scale()
        calibration = Calibration.from_state_dict(state_dict, prefix + "calibration.")
        self.calibration = calibration and calibration.to(self.cls_score.weight.device)
        if prefix + "cls_score.weight" in state_dict:
            told = state_dict.get(prefix + "trained_for")
            self.loaded_activation = (
                self.activation if told is None else bytes(told.tolist()).decode().strip()
            )
        state_dict.pop(prefix + "trained_for", None)
        if self.trained_for is not None:
            state_dict[prefix + "trained_for"] = self.trained_for
        super()._load_from_state_dict(state_dict, prefix, *args)


class TDEOutputLayers(LongTailOutputLayers):
    """Classification by :class:`CausalNormClassifier`, box regression and losses by Detectron2.

    In inference the logits already carry TDE and the background exemption, so everything
    downstream (``predict_probs``, cascade averaging, test-time augmentation, export) is
    Detectron2's own and applies softmax once.

    Args:
        tde: keyword arguments of :class:`CausalNormClassifier`, from the ``MODEL.TDE`` node.
        input_shape, kwargs: see :class:`LongTailOutputLayers`.

    Raises:
        InputError: a value outside its range, or a sigmoid or federated loss together with TDE.
    """

    @configurable
    def __init__(self, input_shape, *, tde: Dict, **kwargs):
        if tde.get("alpha") != 0:
            check_softmax_loss(kwargs.get("use_sigmoid_ce"), kwargs.get("use_fed_loss"))
        super().__init__(input_shape, **kwargs)
        tde = {**tde, "prior_logit": self.prior_logit()}
        self.cls_score = CausalNormClassifier(self.bbox_pred.in_features, self.num_classes, **tde)
        self.trained_for = self._mark()
        # Frozen features have a mean already: see engine/decoupling.py.
        self.tracks_mean = True

    @classmethod
    def from_config(cls, cfg, input_shape):
        args = super().from_config(cfg, input_shape)
        node = cfg.MODEL.TDE
        args["tde"] = {
            "kind": node.CLASSIFIER,
            "num_heads": node.NUM_HEADS,
            "tau": node.TAU,
            "gamma": node.GAMMA,
            "mu": node.MU,
            "alpha": node.ALPHA,
            "auto_alpha": node.AUTO_ALPHA,
            "background_exempt": node.BACKGROUND_EXEMPT,
        }
        return args

    def reset_classifier(self) -> None:
        """Draw the class weights anew; the feature mean stays."""
        self.cls_score.reset_parameters()
        self._forget_class_scale()

    def learn_class_scale(self) -> None:
        """See :meth:`LongTailOutputLayers.learn_class_scale`."""
        self.cls_score.learn_class_scale()

    def before_losses(self, features: Optional[Tensor], labels: Tensor) -> None:
        """Let the foreground features join the moving average.

        Raises:
            RuntimeError: no training ``forward`` since the last ``losses``.
        """
        if features is None:
            raise RuntimeError(
                "TDEOutputLayers.losses() needs the features of the forward() it belongs to: call "
                "forward() in training mode once before each losses()."
            )
        if self.tracks_mean:
            labels = labels.to(features.device)
            self.cls_score.update_mean(features, (labels >= 0) & (labels < self.num_classes))
