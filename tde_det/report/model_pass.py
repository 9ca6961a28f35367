"""Detections of a de-confounded model with and without TDE, from one pass over the images."""

import dataclasses
from typing import Any, Dict, List

import numpy as np
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset

from ..adjustments import TDE, Adjustments
from ..evaluation import Detections
from ..evaluation.sweep_forward import SweepForward
from ..modeling import box_predictors
from .dataset import DataSet


class _Collector(DatasetEvaluator):
    """Keeps the detections of several chains of adjustments."""

    def __init__(self, num_chains: int):
        self._num_chains = num_chains
        self.reset()

    def reset(self) -> None:
        self._found: List[List[Detections]] = [[] for _ in range(self._num_chains)]

    def process(self, inputs: Any, outputs: Any) -> None:
        for found, output in zip(self._found, outputs):
            for entry, result in zip(inputs, output):
                if len(result["instances"]):
                    image = Detections.from_instances(result["instances"], entry["image_id"])
                    found.append(image)

    def evaluate(self) -> Any:
        return [Detections.concatenate(parts) for parts in self._found]


def has_direction(model: Any) -> bool:
    """Whether there is something for TDE to subtract in every box predictor."""
    predictors = box_predictors(model)
    return bool(predictors) and all(
        "tde" in p.adjustments and bool(p.adjustments["tde"].feature_mean.any()) for p in predictors
    )


def with_and_without_tde(model: Any, loader: Any, data: DataSet) -> Dict[str, Detections]:
    """Detections at α = 0 and with TDE, by name; other adjustments are the same in both.

    α is the config's, or 1.5 if that is 0.

    Args:
        model: of which :func:`has_direction`; stays as it is.
        loader: of the data set's test images, one at a time.

    Raises:
        InputError: its ROI heads are other ones than Mask R-CNN's or its cascade's.
    """
    chains: List[List[Adjustments]] = [[], []]
    name = ""
    for predictor in box_predictors(model):
        tde = predictor.adjustments["tde"]
        alpha = tde.alpha or TDE.options["alpha"]
        name = f"TDE, α = {alpha:g}"
        for chain, value in zip(chains, (0.0, alpha)):
            changed = {**predictor.adjustments, "tde": tde.with_options(alpha=value)}
            predictor.check_all_fit(changed)
            chain.append(Adjustments(changed))
    found: Any = inference_on_dataset(SweepForward(model, chains), loader, _Collector(len(chains)))
    # The model's classes become the annotations' category ids.
    ids = np.array([category["id"] for category in data.ground_truth["categories"]])
    found = [dataclasses.replace(d, category_ids=ids[d.category_ids]) for d in found]
    return dict(zip(("α = 0", name), found))
