"""Measure the statistics of adjustments on training data, and put them into a trained model."""

from typing import Any, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..adjustments import ADJUSTMENTS, TDE, Adjustments, Step
from ..data.custom_sets import missing_data_hint
from ..data.image_files import check_images_exist
from ..data.registered import image_files
from ..foreground_statistics import ForegroundStatistics
from ..modeling import needed_box_predictors
from ..modeling.build import TrainingSet, create_adjustment, errors_name, needs_class_means
from .feature_statistics import foreground_statistics


def set_feature_mean(tde: TDE, statistics: ForegroundStatistics, class_balanced: bool) -> str:
    """Put one pass's mean where training keeps its moving average.

    It is of all objects, or of the class means if ``class_balanced``, and is scaled to what an
    endless training with it would have left, so that training may continue.

    Returns:
        what has been measured, in one line.

    Raises:
        ValueError: no box has been seen.
    """
    mean = statistics.class_balanced_mean() if class_balanced else statistics.mean()
    line = (
        f"{int(statistics.counts.sum()):,} foreground boxes, mean cosine to the mean direction "
        f"{statistics.mean_cosine(mean):.4f}"
    )
    if tde.feature_mean.any():
        same = torch.cosine_similarity(tde.feature_mean.double(), mean, dim=0)
        line += f"; cosine of this mean and the one in the checkpoint {same:.4f}"
    tde.feature_mean.copy_(mean / (1 - tde.mu))
    return line


def calibrate(
    cfg: CfgNode,
    model: Any,
    chain: Sequence[Step],
    max_images: Optional[int] = None,
    images_per_class: Optional[int] = None,
    class_balanced: bool = False,
) -> List[str]:
    """Replace a model's adjustments by those of a chain, measured on DATASETS.TRAIN.

    TDE stays first, with the strength that MODEL.TDE says. A step ``tde`` measures its mean
    direction anew.

    Args:
        model: a detector of this package; changed in place.
        max_images: of the pass for ``tde``, ``ncm`` and ``prototypes``; None for all.
        images_per_class: likewise, of every class; with ``tde`` only if ``class_balanced``.
        class_balanced: whether TDE's mean is that of the class means, not of all objects.

    Returns:
        what has been measured for TDE, a line for each stage.

    Raises:
        InputError: a step does not fit the model, or the data cannot be used.
    """
    predictors = needed_box_predictors(model)
    names = [step.name for step in chain]
    with errors_name(f"adjustments {', '.join(names)}"):
        if class_balanced and "tde" not in names:
            raise ValueError("--class-balanced is for the mean of tde, which is not among them")
        for step in chain:
            if step.name == "tde" and step.options:
                raise ValueError("options of tde are not saved: set MODEL.TDE.ALPHA and the like")
            if step.name == "tde" and images_per_class is not None and not class_balanced:
                raise ValueError(
                    "tde's mean is one over all objects, not so many of every class, unless it is "
                    "--class-balanced"
                )
            predictors[0].check_fits(ADJUSTMENTS[step.name])
    statistics: List[Any] = [None] * len(predictors)
    if any(name == "tde" or needs_class_means(name) for name in names):
        for name in cfg.DATASETS.TRAIN if comm.is_main_process() else ():
            check_images_exist(image_files(name), name, missing_data_hint())
        statistics = foreground_statistics(cfg, model, max_images, images_per_class)
    lines = []
    for stage, (predictor, features) in enumerate(zip(predictors, statistics)):
        data = TrainingSet(cfg, features)
        made: Any = Adjustments()
        if predictor.is_normalized:
            made["tde"] = predictor.adjustments["tde"]
        for step in chain:
            if step.name != "tde":
                made[step.name] = create_adjustment(step, data)
                continue
            with errors_name("DATASETS.TRAIN"):
                lines.append(
                    f"stage {stage}: {set_feature_mean(made['tde'], features, class_balanced)}"
                )
        predictor.adjustments = made.to(predictor.cls_score.weight.device)
    return lines
