"""Detectron2's box predictor with a de-confounded classifier in place of the linear one."""

from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.structures import Instances
from torch import Tensor

from .causal_norm import CausalNormClassifier
from .errors import InputError
from .inference.box_inference import OutputLayers


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


class TDEOutputLayers(OutputLayers):
    """Classification by :class:`CausalNormClassifier`, box regression and losses by Detectron2.

    In inference the logits already carry TDE and the background exemption, so everything
    downstream (``predict_probs``, cascade averaging, test-time augmentation, export) is
    Detectron2's own and applies softmax once.

    Args:
        input_shape: shape of the box feature.
        tde: keyword arguments of :class:`CausalNormClassifier`, from the ``MODEL.TDE`` node.
        kwargs: those of ``FastRCNNOutputLayers``.

    Raises:
        InputError: a value outside its range, or a sigmoid or federated loss together with TDE.
    """

    # Box features of the running training iteration: `forward` has them, `losses` the labels.
    _features: Optional[Tensor]

    @configurable
    def __init__(self, input_shape, *, tde: Dict, **kwargs):
        if tde.get("alpha") != 0:
            check_softmax_loss(kwargs.get("use_sigmoid_ce"), kwargs.get("use_fed_loss"))
        super().__init__(input_shape, **kwargs)
        self.cls_score = CausalNormClassifier(self.bbox_pred.in_features, self.num_classes, **tde)
        self._features = None

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

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Box features ``Tensor[N, ...]`` → logits ``Tensor[N, C+1]`` and box deltas."""
        if x.dim() > 2:
            x = torch.flatten(x, start_dim=1)
        if self.training:
            self._features = x.detach()
        return self.cls_score(x), self.bbox_pred(x)

    def predict_probs(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> List[Tensor]:
        """Softmax of the logits per image, ``Tensor[N, C+1]``, or what has it computed already."""
        logits, _ = predictions
        counts = [len(p) for p in proposals]
        if not torch.jit.is_scripting():  # noqa: SIM102 (the compiler takes no other form)
            if hasattr(logits, "probabilities"):
                return logits.probabilities.split(counts)
        probs = logits.sigmoid() if self.use_sigmoid_ce else F.softmax(logits, dim=-1)
        return probs.split(counts)

    def losses(
        self, predictions: Tuple[Tensor, Tensor], proposals: List[Instances]
    ) -> Dict[str, Tensor]:
        """Detectron2's losses; on the way, the foreground features join the moving average.

        Raises:
            RuntimeError: no training ``forward`` since the last call.
        """
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError(
                "TDEOutputLayers.losses() needs the features of the forward() it belongs to: call "
                "forward() in training mode once before each losses()."
            )
        labels = torch.cat([p.gt_classes for p in proposals] or [features.new_zeros(0)])
        self.cls_score.update_mean(features, (labels >= 0) & (labels < self.num_classes))
        return super().losses(predictions, proposals)
