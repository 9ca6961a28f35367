"""Warn of a mean direction that is largely one class's: TDE takes that class's evidence away."""

import logging
from typing import Any, Sequence

import torch
from detectron2.data import MetadataCatalog

from ..adjustments.dominance import DOMINANT, class_alignment

logger = logging.getLogger(__name__)


def warn_of_dominant_class(
    predictors: Sequence[Any], adjustments: Sequence[Any], dataset_name: str
) -> bool:
    """Warn if TDE is applied and one class's weight points along d̂; tell whether it is so.

    Args:
        predictors: the box predictors of a model.
        adjustments: of each, those that are applied.
        dataset_name: registered, with the names of the classes.
    """
    applied = [(p, a["tde"]) for p, a in zip(predictors, adjustments) if "tde" in a]
    stages = [
        class_alignment(p.cls_score.class_weight().detach(), tde.feature_mean, tde.num_heads)
        for p, tde in applied
        if not tde.is_off()
    ]
    if not stages:
        return False
    alignment = torch.stack(stages).mean(dim=0)[: applied[0][0].num_classes]
    names = MetadataCatalog.get(dataset_name).thing_classes
    top, second = alignment.topk(2).values.tolist()
    if top < DOMINANT:
        return False
    logger.warning(
        "TDE may hurt here: the mean feature's direction is largely that of class %s (cosine %.2f "
        "with its weights; the next class has %.2f), so TDE lowers the scores of this class. "
        "Compare with MODEL.TDE.ALPHA 0 and with other adjustments: tools/sweep.py --recommend",
        *(names[int(alignment.argmax())], top, second),
    )
    return True
