"""Find a class whose own direction the mean direction largely is: TDE takes its evidence away."""

import logging
from typing import Any, Iterable, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.data import MetadataCatalog

from ..adjustments import TDE
from ..adjustments.dominance import DOMINANT, class_alignment

logger = logging.getLogger(__name__)


class DominantClass(NamedTuple):
    """A class, and how far its weights point along d̂.

    Attributes:
        label: of the class.
        cosine: a_i of adjustments/dominance.py, mean over the stages.
        next_cosine: the highest of another class.
    """

    label: int
    cosine: float
    next_cosine: float


def find_dominant_class(stages: Iterable[Tuple[Any, TDE]]) -> Optional[DominantClass]:
    """The class that d̂ is largely the direction of, if there is one.

    Args:
        stages: box predictors and their TDE.
    """
    alignments = [
        class_alignment(p.cls_score.class_weight().detach(), tde.feature_mean, tde.num_heads)[
            : p.num_classes
        ]
        for p, tde in stages
    ]
    if not alignments:
        return None
    (top, second), (label, _) = torch.stack(alignments).mean(dim=0).topk(2)
    if top - second < DOMINANT:
        return None
    return DominantClass(int(label), float(top), float(second))


def warn_of_dominant_class(
    predictors: Sequence[Any], adjustments: Sequence[Any], dataset_name: str
) -> bool:
    """Warn if there is a dominant class and TDE is applied; tell whether it is so.

    Args:
        predictors: the box predictors of a model.
        adjustments: of each, those that are applied.
        dataset_name: registered, with the names of the classes.
    """
    stages = [(p, a["tde"]) for p, a in zip(predictors, adjustments) if "tde" in a]
    found = find_dominant_class((p, tde) for p, tde in stages if not tde.is_off())
    if found is None:
        return False
    logger.warning(
        "TDE may hurt here: the mean feature's direction is largely that of class %s (cosine %.2f "
        "with its weights; the next class has %.2f), so TDE lowers the scores of this class. "
        "docs/when_tde_hurts.md: tools/calibrate.py --adjust tde --class-balanced, or other "
        "adjustments, which tools/sweep.py --recommend compares",
        *(MetadataCatalog.get(dataset_name).thing_classes[found.label], *found[1:]),
    )
    return True
