"""LVIS metrics of many chains of adjustments from one pass over the images."""

import logging
import os
from typing import Any, Dict, Optional, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm

from ..adjustments import ADJUSTMENTS, Adjustments, Step, statistics_of
from ..data.lvis_json import read_lvis_json
from ..errors import InputError
from ..modeling import TDEOutputLayers, needed_box_predictors
from ..modeling.build import TrainingSet, create_adjustment, errors_name
from ..modeling.dominant_class import warn_of_dominant_class
from ..output_files import check_writable, set_aside
from .evaluator import LongTailEvaluator
from .sweep_forward import SweepForward
from .sweep_table import Chain, Metrics, plot, write_table

logger = logging.getLogger(__name__)


def title_of(chain: Chain) -> str:
    """A chain in the words that ask for it."""
    return " + ".join(map(str, chain)) or "none"


def chain_of(predictor: TDEOutputLayers, chain: Chain, data: TrainingSet) -> Adjustments:
    """The adjustments of a chain for one box predictor, which stays as it is.

    Statistics are the predictor's own where one of its adjustments has them.

    Args:
        data: what other adjustments are made of.

    Raises:
        InputError: a step does not fit the predictor.
    """
    made, known = Adjustments(), statistics_of(predictor.adjustments)
    with errors_name(f"adjustment {title_of(chain)!r}"):
        for name, options in chain:
            predictor.check_fits(ADJUSTMENTS[name])
            if name in predictor.adjustments:
                made[name] = predictor.adjustments[name].with_options(**options)
            else:
                made[name] = create_adjustment(Step(name, options), data, known)
        made.to(predictor.cls_score.weight.device)
    return made


class _EvaluatorOfEach(DatasetEvaluator):
    """Gives every chain's evaluator the detections with its chain."""

    def __init__(self, evaluators: Sequence[LongTailEvaluator]):
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator, output in zip(self._evaluators, outputs):
            evaluator.process(inputs, output)


def collect_detections(
    cfg: CfgNode, model: GeneralizedRCNN, loader: Any, dataset_name: str, chains: Sequence[Chain]
) -> Dict[str, LongTailEvaluator]:
    """Run a model once over the images; by the chain's title, an evaluator with its detections.

    Raises:
        InputError: before the pass, if a chain does not fit the model.
    """
    if MetadataCatalog.get(dataset_name).get("evaluator_type") != "lvis":
        raise InputError(f"DATASETS.TEST: {dataset_name} has no annotations in LVIS format")
    predictors = needed_box_predictors(model)
    by_title = {title_of(chain): chain for chain in chains}
    data = TrainingSet(cfg)
    made = [[chain_of(p, chain, data) for p in predictors] for chain in by_title.values()]
    any(warn_of_dominant_class(predictors, stages, dataset_name) for stages in made)  # once
    tasks = ("bbox", "segm") if model.roi_heads.mask_on else ("bbox",)
    evaluators = {
        t: LongTailEvaluator(dataset_name, tasks, None, cfg.TEST.LVIS_BACKEND) for t in by_title
    }
    inference_on_dataset(
        SweepForward(model, made), loader, _EvaluatorOfEach([*evaluators.values()])
    )
    return evaluators


def sweep(
    cfg: CfgNode,
    model: GeneralizedRCNN,
    loader: Any,
    dataset_name: str,
    chains: Sequence[Chain],
    output_dir: str,
) -> Dict[str, Metrics]:
    """Evaluate a model once for each chain, from one forward pass per image.

    Writes ``sweep.csv``, with a row for each chain as soon as it is evaluated, and ``sweep.png``.
    An earlier table is renamed to ``sweep_1.csv`` and the like.

    Args:
        cfg: names the training set, whose class counts some adjustments need, and the backend.
        model: stays as it is.
        loader: of the data set's test images, one at a time.
        dataset_name: registered, in LVIS format.
        chains: from :func:`tde_det.adjustments.parse_chains`.
        output_dir: folder for the files.

    Returns:
        by the chain's title, the metrics of every task, those of a plain evaluation up to rounding;
        ``{}`` on other processes than the main one.

    Raises:
        InputError: before the forward pass, if a chain does not fit the model or the table cannot
            be written.
    """
    path = os.path.join(output_dir, "sweep.csv")
    if comm.is_main_process():
        check_writable(path)
    by_title = {title_of(chain): chain for chain in chains}
    evaluators = collect_detections(cfg, model, loader, dataset_name, chains)
    json_file = MetadataCatalog.get(dataset_name).json_file
    ground_truth = None
    if comm.is_main_process():
        ground_truth = read_lvis_json(json_file)
        set_aside(path)
    results: Dict[str, Metrics] = {}
    failed: Optional[Exception] = None
    for title, evaluator in evaluators.items():
        try:
            metrics = evaluator.evaluate(ground_truth)
        except Exception as error:  # the others are worth hours
            logger.exception("%s could not be evaluated", title)
            failed, metrics = error, {}
        if metrics:  # on the main process
            results[title] = metrics
            write_table(path, results, by_title)
        evaluator.reset()
    if failed is not None:
        raise failed
    if results:
        plot(results, by_title, os.path.join(output_dir, "sweep.png"))
    return results
