"""What a classifier has learned of frequent and rare classes: its weights and the mean direction.

For a normalised classifier with the mean direction d̂ of adjustments/feature_mean.py:

    raise_i = Σ_k mean of cos(xᵏ, d̂ᵏ) · τ/K·(wᵢᵏ·d̂ᵏ)/(‖wᵢᵏ‖+γ)

is how much the mean direction raises the logit of class i, on average over the foreground boxes.
TDE subtracts α times that. cos(x, d̂) of foreground boxes by their class's frequency, and of
background, is measured on the evaluated images, with RoIs sampled and labelled as in training.
"""

import contextlib
from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode

from ..adjustments.feature_mean import head_cosine
from ..adjustments.tde import class_projection
from ..engine.feature_statistics import labelled_stages
from ..errors import InputError
from ..modeling import box_predictors
from ..modeling.build import TrainingSet
from ..modeling.dominant_class import find_dominant_class

BINS = np.linspace(-1, 1, 41)  # of cos(x, d̂)

GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent", "b": "background"}


def weight_norms(model: Any) -> List[List[float]]:
    """‖w_i‖ of every class, by stage: ``[stages, C]``; that of a linear classifier likewise."""
    return [
        torch.linalg.vector_norm(p.cls_score.weight.detach().float()[: p.num_classes], dim=1)
        .cpu()
        .tolist()
        for p in box_predictors(model)
    ]


def cosines(
    cfg: CfgNode, model: Any, dataset_name: str, frequencies: Sequence[str], max_images: int
) -> List[Dict[str, np.ndarray]]:
    """cos(xᵏ, d̂ᵏ) of boxes, by stage and the letters of :data:`GROUP_NAMES`, ``[N, K]`` each.

    Args:
        model: with normalised classifiers.
        dataset_name: whose images are used, at most ``max_images`` of them, evenly spaced.
        frequencies: of every class.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = (dataset_name,)
    groups = np.array([*frequencies, "b"])
    found: List[Dict[str, List[np.ndarray]]] = []
    for stages in labelled_stages(cfg, model, max_images):
        for number, stage in enumerate(stages):
            if number == len(found):
                found.append({letter: [] for letter in GROUP_NAMES})
            tde, x = stage.predictor.adjustments["tde"], stage.predictions[2]
            values = head_cosine(x.to(tde.feature_mean.dtype), tde.feature_mean, tde.num_heads)
            labels = torch.cat([p.gt_classes for p in stage.proposals]).cpu().numpy()
            letters = np.where(labels < 0, "", groups[labels])  # -1: in a crowd, say
            for letter, parts in found[number].items():
                parts.append(values.cpu().numpy()[letters == letter])
    return [{letter: np.concatenate(p) for letter, p in stage.items()} for stage in found]


def raised_logits(model: Any, measured: Sequence[Dict[str, np.ndarray]]) -> List[np.ndarray]:
    """raise_i of every class, by stage.

    Args:
        measured: from :func:`cosines`.
    """
    raised = []
    for predictor, stage in zip(box_predictors(model), measured):
        tde = predictor.adjustments["tde"]
        foreground = np.concatenate([stage[letter] for letter in "rcf"])
        if not len(foreground):
            raise InputError("no box of the evaluated images is foreground: is the model trained?")
        weight = predictor.cls_score.class_weight().detach().float()
        projection = class_projection(weight, tde.feature_mean.float(), tde.num_heads)
        classes = projection[: predictor.num_classes].cpu().numpy()
        raised.append(classes @ foreground.mean(axis=0))
    return raised


def training_shares(cfg: CfgNode) -> np.ndarray:
    """Each class's part of all training objects, ``[C]``.

    Raises:
        InputError: the training set cannot be read.
    """
    instances = TrainingSet(cfg).instances.numpy()
    return instances / instances.sum()


def explain(
    cfg: CfgNode, model: Any, dataset_name: str, frequencies: Sequence[str], max_images: int
) -> Dict[str, Any]:
    """All of the above for the page, as lists and numbers.

    Without normalised classifiers, or with ``max_images`` 0, the norms alone.
    """
    told: Dict[str, Any] = {"norms": weight_norms(model)}
    if not max_images or not all(p.is_normalized for p in box_predictors(model)):
        return told
    measured = cosines(cfg, model, dataset_name, frequencies, max_images)
    raised = raised_logits(model, measured)
    told["cosines"] = [
        {letter: _histogram(values) for letter, values in stage.items()} for stage in measured
    ]
    told["raised"] = [values.tolist() for values in raised]
    told["alphas"] = [p.adjustments["tde"].alpha for p in box_predictors(model)]
    found = find_dominant_class((p, p.adjustments["tde"]) for p in box_predictors(model))
    told["dominant"] = None if found is None else found._asdict()
    with contextlib.suppress(InputError):  # the training set need not be here
        told["shares"] = training_shares(cfg).tolist()
    return told


def _histogram(values: np.ndarray) -> Dict[str, Any]:
    """Number and mean of ``[N, K]`` cosines, means over the heads, and the share in each bin."""
    means = values.mean(axis=1)
    if not len(means):
        return {"count": 0}
    counts, _ = np.histogram(np.clip(means, -1, 1), BINS)
    return {
        "count": len(means),
        "mean": float(means.mean()),
        "shares": (counts / len(means)).tolist(),
    }
