"""Detectron2's box predictor with a classifier, a loss and adjustments of this package."""

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple, Type

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ..activations import prior_logit, scores_from_logits
from ..adjustments import TDE, Adjustment, Adjustments, TauNorm, take_saved
from ..classifiers import CausalNormClassifier, LinearClassifier
from ..errors import InputError
from ..inference.box_inference import box_inference
from ..losses import ClassificationLoss
from .build import predictor_arguments
from .training_events import TrainingEvents

# Factual logits Tensor[N, C+1], box deltas Tensor[N, 4] or [N, 4C], and box features Tensor[N, D].
Predictions = Tuple[Tensor, Tensor, Tensor]


class TDEOutputLayers(FastRCNNOutputLayers):
    """Classify, train, adjust; box regression by Detectron2.

    Unlike Detectron2's, ``forward`` also returns the features. In training, TDE averages those of
    the foreground boxes; at inference, adjustments need them.

    Args:
        input_shape: shape of the box feature.
        classifier: keyword arguments of :class:`CausalNormClassifier`, such as ``{"tau": 16.0}``;
            None for a linear classifier.
        adjustments: by name, in their order, see :data:`tde_det.adjustments.ADJUSTMENTS`.
        takes_carried: whether to add the adjustments that a loaded checkpoint carries.
        classification_loss: None for Detectron2's own losses.
        prior_prob: where scores of independent classes start, in (0, 1); None for logits of 0.
        kwargs: those of ``FastRCNNOutputLayers``.

    Raises:
        ValueError: a value outside its range, or parts that do not go together.
    """

    if TYPE_CHECKING:  # TorchScript takes no such annotations
        cls_score: Any  # LinearClassifier or CausalNormClassifier
        adjustments: Any  # Adjustments
        num_classes: int

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        classifier: Optional[Mapping[str, Any]] = None,
        adjustments: Optional[Mapping[str, Adjustment]] = None,
        takes_carried: bool = True,
        classification_loss: Optional[ClassificationLoss] = None,
        prior_prob: Optional[float] = None,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        self.classification_loss = classification_loss
        self.training_events = TrainingEvents()
        self.activation = "sigmoid" if self.use_sigmoid_ce else "softmax"
        if classification_loss is not None:
            self.activation = classification_loss.activation
        prior = 0.0
        if prior_prob is not None and "softmax" not in self.activation:
            prior = prior_logit(prior_prob, self.activation)
        linear, self.is_normalized = self.cls_score, classifier is not None
        if classifier is None:
            self.cls_score = LinearClassifier(linear, self.num_classes, prior)
        else:
            self.cls_score = CausalNormClassifier(
                linear.in_features, self.num_classes, **classifier, prior_logit=prior
            )
        self.adjustments = Adjustments(dict(adjustments or {}))
        self.takes_carried = takes_carried
        self.check_all_fit(self.adjustments)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), **predictor_arguments(cfg, input_shape)}

    def check_fits(self, kind: Type[Adjustment]) -> None:
        """Raise ``ValueError`` for an adjustment that means nothing for the classifier or loss."""
        name = kind.__name__
        if self.activation not in kind.activations:
            raise ValueError(
                f"{name} changes {' or '.join(kind.activations)} scores, but this model's loss "
                f"trains {self.activation} scores: take another loss, or no {name} (alpha=0)"
            )
        if kind is TDE and not self.is_normalized:
            raise ValueError("TDE needs a normalised classifier, but this model's is linear")
        if kind is TauNorm and self.is_normalized:
            raise ValueError(
                "TauNorm divides class weights by their norms, which this model's normalised "
                "classifier does already"
            )

    def check_all_fit(self, adjustments: Any) -> None:
        """:meth:`check_fits` of those that are not off."""
        for adjustment in adjustments.values():
            if not adjustment.is_off():
                self.check_fits(type(adjustment))

    def forward(self, x: Tensor) -> Predictions:
        """Box features ``Tensor[N, ...]`` → factual logits, box deltas, and the features."""
        x = torch.flatten(x, start_dim=1)
        return self.cls_score(x), self.bbox_pred(x), x

    def losses(self, predictions: Predictions, proposals: List[Instances]) -> Dict[str, Tensor]:
        """Detectron2's losses, with ``classification_loss`` in place of its own if there is one.

        The features of foreground boxes join TDE's moving average.
        """
        logits, deltas, x = predictions
        labels = torch.cat([p.gt_classes for p in proposals] or [torch.zeros(0, dtype=torch.long)])
        labels = labels.to(logits.device)
        if "tde" in self.adjustments:
            self.adjustments["tde"].update_mean(x, (labels >= 0) & (labels < self.num_classes))
        self.training_events.put(x, logits, labels, self.activation, self.adjustments)
        losses = super().losses((logits, deltas), proposals)
        if self.classification_loss is not None:
            weight = self.loss_weight.get("loss_cls", 1.0)
            losses["loss_cls"] = weight * self.classification_loss(logits, labels)
        return losses

    def predict_boxes(self, predictions: Predictions, proposals: List[Instances]):
        """Boxes per image, ``Tensor[N, 4]`` or ``Tensor[N, 4C]``."""
        if len(proposals) == 0:
            return []
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        boxes = self.box2box_transform.apply_deltas(predictions[1], boxes)
        return boxes.split([p.__len__() for p in proposals])  # len() is a constant in a trace

    def predict_boxes_for_gt_classes(self, predictions: Predictions, proposals: List[Instances]):
        """Detectron2's, which takes logits and deltas."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(self, predictions: Predictions, proposals: List[Instances]):
        """Scores per image, ``Tensor[N, C+1]``, from the adjusted logits."""
        logits, _, x = predictions
        logits = self.adjustments(x, logits, self.cls_score.class_weight(), self.activation)
        scores = scores_from_logits(logits, self.activation)
        return scores.split([p.__len__() for p in proposals])

    def inference(self, predictions: Predictions, proposals: List[Instances]):
        """Detections and the proposals they come from, per image."""
        return box_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take the adjustments of a checkpoint, or their class means for those of the config."""
        take_saved(self.adjustments, state_dict, f"{prefix}adjustments.", self.takes_carried)
        self.adjustments.to(self.cls_score.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def box_predictors(model: nn.Module) -> List[TDEOutputLayers]:
    """The box predictors of a model, in the order of its stages."""
    return [module for module in model.modules() if isinstance(module, TDEOutputLayers)]


def needed_box_predictors(model: nn.Module) -> List[TDEOutputLayers]:
    """:func:`box_predictors` of a model that must have some.

    Raises:
        InputError: it has none.
    """
    predictors = box_predictors(model)
    if not predictors:
        raise InputError(
            "the model has no box predictor that can be adjusted: neither one of this package "
            "(MODEL.ROI_HEADS.NAME TDECascadeROIHeads or TDEStandardROIHeads) nor Detectron2's "
            "FastRCNNOutputLayers"
        )
    return predictors
