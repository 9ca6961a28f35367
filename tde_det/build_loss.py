"""From ``MODEL.LONG_TAIL`` to a classification loss."""

import logging
from typing import Any, Dict, Optional

import torch
from detectron2.config import CfgNode

from .data.class_counts import class_counts
from .errors import InputError
from .losses import DISTRIBUTIONS, LOSSES, ClassCounts, ClassificationLoss
from .losses.base import check_range

logger = logging.getLogger(__name__)


def _options(cfg: CfgNode, name: str) -> Dict[str, Any]:
    """The loss's own node as keyword arguments."""
    node = cfg.MODEL.LONG_TAIL.get(name.upper(), {})
    options = {key.lower(): value for key, value in node.items()}
    if name == "ldam":
        start = options["drw_start"]
        if not 0 <= start <= 1:
            raise InputError(
                f"MODEL.LONG_TAIL.LDAM.DRW_START is a part of MAX_ITER in [0, 1], got {start}"
            )
        options["drw_start"] = int(start * cfg.SOLVER.MAX_ITER) if start < 1 else -1
    return options


def training_counts(cfg: CfgNode) -> ClassCounts:
    """Class counts of DATASETS.TRAIN, with what MODEL.LONG_TAIL.COUNT names as ``instances``.

    Raises:
        InputError: the data sets cannot be read.
    """
    counts = class_counts(cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    by_images = cfg.MODEL.LONG_TAIL.COUNT == "images"
    return counts._replace(instances=counts.images) if by_images else counts


def check_loss(cfg: CfgNode) -> None:
    """Refuse losses that do not exist and combinations that mean nothing.

    Raises:
        InputError: naming the keys.
    """
    name = cfg.MODEL.LONG_TAIL.LOSS
    box_head, tde = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.TDE
    if name not in LOSSES:
        raise InputError(f"MODEL.LONG_TAIL.LOSS must be one of {', '.join(LOSSES)}, got {name!r}")
    prior, count = cfg.MODEL.LONG_TAIL.PRIOR_PROB, cfg.MODEL.LONG_TAIL.COUNT
    if not 0 < prior < 1:
        raise InputError(f"MODEL.LONG_TAIL.PRIOR_PROB must be in (0, 1), got {prior}")
    if count not in ("instances", "images"):
        raise InputError(f'MODEL.LONG_TAIL.COUNT must be "instances" or "images", got {count!r}')
    if name != "cross_entropy" and (box_head.USE_SIGMOID_CE or box_head.USE_FED_LOSS):
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS is {name!r}, and MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE or "
            "USE_FED_LOSS asks for a loss of Detectron2: set these to False, or LOSS "
            '"cross_entropy"'
        )
    activation = LOSSES[name].activation
    if tde.CLASSIFIER != "linear" and tde.ALPHA != 0:
        check_distribution(activation, f"MODEL.LONG_TAIL.LOSS {name!r}")


def check_distribution(activation: str, what: str) -> None:
    """Refuse TDE for scores that are no distribution.

    Raises:
        InputError: naming ``what`` trains such scores.
    """
    if activation not in DISTRIBUTIONS:
        raise InputError(
            f"TDE compares distributions over classes and background, but {what} trains every "
            'class for itself. Set MODEL.TDE.ALPHA 0 (no TDE) or MODEL.TDE.CLASSIFIER "linear", '
            "or another loss."
        )


def build_loss(cfg: CfgNode) -> Optional[ClassificationLoss]:
    """The loss that MODEL.LONG_TAIL.LOSS names; None where Detectron2 has it itself.

    A model that only infers can be built without its training set: the loss then keeps the reason,
    and raises it if it is used.

    Raises:
        InputError: a value outside its range.
    """
    name = cfg.MODEL.LONG_TAIL.LOSS
    if name in ("cross_entropy", "federated"):
        return None
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    counts, missing = None, ""
    if LOSSES[name].needs_counts:
        try:
            counts = training_counts(cfg)
        except InputError as error:
            ones = torch.ones(num_classes)
            counts, missing = ClassCounts(ones, ones, num_classes), str(error)
    options = _options(cfg, name)
    try:
        loss = LOSSES[name](num_classes, counts=counts, **options)
    except InputError as error:
        raise InputError(f"MODEL.LONG_TAIL.{name.upper()}: {error}") from error
    loss.counts_missing = missing
    return loss


def federated_arguments(cfg: CfgNode) -> Dict[str, Any]:
    """What makes Detectron2's box predictor use its own federated loss on our class counts."""
    try:
        images = training_counts(cfg).images
    except InputError:  # without its training set, the model can still infer
        images = torch.ones(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    power = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
    check_range("MODEL.ROI_BOX_HEAD", "FED_LOSS_FREQ_WEIGHT_POWER", power, 0, 10)
    number, present = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES, int((images > 0).sum())
    if number < 1:
        raise InputError(f"MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES must be ≥ 1, got {number}")
    if number > present:  # Detectron2 could not draw so many
        logger.warning(
            "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES is %d, but DATASETS.TRAIN has objects of %d "
            "classes: every batch counts for all of them. Set a lower number to sample classes.",
            number,
            present,
        )
    weights = images.float() ** power
    return {
        "use_fed_loss": True,
        "use_sigmoid_ce": True,
        "fed_loss_num_classes": min(number, present),
        "get_fed_loss_cls_weights": lambda: weights,
    }
