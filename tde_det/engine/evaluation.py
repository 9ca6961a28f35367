"""Evaluation on the test sets, which continues one that was interrupted."""

import logging
import os
from collections import OrderedDict
from typing import Any, List, Sequence, Type, Union

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..evaluation import LongTailEvaluator
from ..evaluation.unfinished import Unfinished
from .fingerprint import model_hash, settings_hash

logger = logging.getLogger(__name__)


def _continue(loader: Any, evaluator: LongTailEvaluator, unfinished: Unfinished) -> Any:
    """Let an evaluator keep its detections on disk; a loader of the images that are missing."""
    evaluator.keep_in(unfinished)
    return build_detection_test_loader(
        loader.dataset,
        mapper=None,  # the data set maps
        sampler=unfinished.positions,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )


def evaluate(
    trainer: Type[DefaultTrainer],
    cfg: CfgNode,
    model: nn.Module,
    evaluators: Union[DatasetEvaluator, Sequence[DatasetEvaluator], None] = None,
) -> OrderedDict:
    """``DefaultTrainer.test``, which goes on with the images that an interrupted one lacks.

    A :class:`LongTailEvaluator` with a folder goes on, if the loader is of Detectron2's
    ``build_detection_test_loader``. Weights, settings and data must be the same.

    Args:
        trainer: builds the loaders, and the evaluators if there are none.
        cfg, model, evaluators: as ``DefaultTrainer.test`` takes them.

    Returns:
        the metrics of each test set by its name; of a single one, the metrics.
    """
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    if evaluators is None:
        evaluators = [trainer.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
    assert len(evaluators) == len(cfg.DATASETS.TEST), "one evaluator for each of DATASETS.TEST"
    network = model.module if isinstance(model, DistributedDataParallel) else model
    # The main process's: batch norm's statistics may differ.
    (weights,) = comm.all_gather(model_hash(network) if comm.is_main_process() else "")[:1]
    results: OrderedDict = OrderedDict()
    kept: List[Unfinished] = []
    for name, evaluator in zip(cfg.DATASETS.TEST, evaluators):
        loader = trainer.build_test_loader(cfg, name)
        is_ours = isinstance(evaluator, LongTailEvaluator) and evaluator.output_dir
        if is_ours and isinstance(getattr(loader, "sampler", None), InferenceSampler):
            settings = settings_hash(cfg, name, len(loader.dataset))
            folder = os.path.join(evaluator.output_dir, "unfinished")
            unfinished = Unfinished(folder, f"{weights} {settings}", len(loader.dataset))
            if unfinished.is_shared:
                kept.append(unfinished)
                loader = _continue(loader, evaluator, unfinished)
            elif comm.is_main_process():
                logger.warning(
                    "Not all processes see %s: detections are kept in memory, and an interrupted "
                    "evaluation will start anew",
                    folder,
                )
        results[name] = inference_on_dataset(model, loader, evaluator)
        if comm.is_main_process():
            logger.info("Evaluation results for %s in csv format:", name)
            print_csv_format(results[name])
    for unfinished in kept:  # all test sets are done
        unfinished.remove()
    return next(iter(results.values())) if len(results) == 1 else results
