"""Decoupled training: everything but the classifier is frozen.

    cRT    a new classifier on the features of a trained model
    LWS    w̃_i = f_i·w_i, one scale per foreground class on the old classifier

Both train with class-balanced sampling. Source: Kang et al., "Decoupling Representation and
Classifier for Long-Tailed Recognition", ICLR 2020.
"""

import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..modeling import needed_box_predictors
from .last_checkpoint import last_checkpoint

DECOUPLED = ("crt", "lws")

logger = logging.getLogger(__name__)


def check_decoupling(cfg: CfgNode, resume: bool) -> None:
    """Refuse an unknown method, and one without a trained model to start from.

    Raises:
        InputError: naming the key.
    """
    method = cfg.MODEL.LONG_TAIL.DECOUPLE
    if method and method not in DECOUPLED:
        raise InputError(
            f'MODEL.LONG_TAIL.DECOUPLE must be "" or one of {DECOUPLED}, got {method!r}'
        )
    resumes = resume and bool(last_checkpoint(cfg.OUTPUT_DIR))
    if method and not (cfg.MODEL.WEIGHTS or resumes):
        raise InputError(
            f"MODEL.LONG_TAIL.DECOUPLE {method} trains the classifier of a trained model alone: "
            "give the model as MODEL.WEIGHTS"
        )
    folder = os.path.dirname(os.path.abspath(cfg.MODEL.WEIGHTS))
    if method and not resumes and os.path.realpath(folder) == os.path.realpath(cfg.OUTPUT_DIR):
        raise InputError(
            f"MODEL.LONG_TAIL.DECOUPLE {method} would overwrite the model that it starts from, "
            f"{cfg.MODEL.WEIGHTS}: give another OUTPUT_DIR"
        )
    if method and cfg.DATALOADER.SAMPLER_TRAIN != "ClassBalancedSampler":
        logger.warning(
            "MODEL.LONG_TAIL.DECOUPLE is meant for DATALOADER.SAMPLER_TRAIN ClassBalancedSampler, "
            "which is %s",
            cfg.DATALOADER.SAMPLER_TRAIN,
        )


def freeze_all_but_classifier(model: nn.Module, method: str) -> None:
    """Leave the parameters that ``method`` trains as the only ones with gradients.

    Raises:
        InputError: the model's box predictors have no decoupled training.
    """
    predictors = needed_box_predictors(model)
    model.requires_grad_(False)
    for predictor in predictors:
        if method == "lws":
            predictor.cls_score.learn_class_scale()
            predictor.cls_score.class_scale.requires_grad_(True)
        else:
            predictor.cls_score.requires_grad_(True)
        if predictor.is_normalized:  # the features stay, and their mean is in the checkpoint
            predictor.adjustments["tde"].frozen = True


class FreezeNorms(HookBase):
    """Keeps batch norm at its running statistics; evaluations switch it back to training."""

    def before_step(self) -> None:
        for module in self.trainer.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
