"""Detectron2's default trainer with LVIS evaluation."""

import logging
import os
from collections import OrderedDict
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase, hooks
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from ..data import build_test_loader, build_train_loader
from ..data.batch_sampler import ResumableBatchSampler
from ..data.custom_sets import missing_data_hint
from ..data.image_files import check_images_exist
from ..data.registered import image_files
from ..errors import InputError
from ..evaluation import LongTailEvaluator
from ..inference.run_length_masks import RunLengthMasks
from ..modeling import TDEOutputLayers, box_predictors, build_detector
from ..modeling.dominant_class import warn_of_dominant_class
from .checkpoints import Checkpointer, activation_of, check_activation, readable_checkpoint
from .class_means import ClassMeans
from .decoupling import FreezeNorms, freeze_all_but_classifier
from .evaluation import evaluate
from .event_writers import write_all_evaluations
from .fault_tolerant_trainer import FaultTolerantTrainer
from .lazy_config import build_mapper, errors_name_paths
from .solver import make_optimizer, make_schedule
from .value_checks import errors_name_section

logger = logging.getLogger(__name__)


def prepare_training(predictor: TDEOutputLayers, decouple: str) -> None:
    """Make a box predictor whose weights have been loaded ready for a new training.

    Args:
        decouple: MODEL.LONG_TAIL.DECOUPLE. ``"crt"`` draws the classifier anew.

    """
    tde = predictor.adjustments["tde"] if predictor.is_normalized else None
    if decouple and tde is not None and not bool(tde.feature_mean.any()):
        logger.warning(
            "MODEL.WEIGHTS has no feature mean, and frozen features are not averaged: TDE does "
            "nothing until tools/calibrate.py has measured it"
        )
    if decouple == "crt":
        predictor.cls_score.reset_parameters()
    elif not decouple and predictor.cls_score.class_scale is not None:
        logger.warning("The class scales learned by LWS stay as they are in this training")
    if predictor.classification_loss is not None:
        predictor.classification_loss.reset_statistics()


class Trainer(FaultTolerantTrainer):
    """Detectron2's ``DefaultTrainer`` that survives faults and reads images tolerantly.

    It evaluates by the data set's metadata.

    A resumed training goes on with the images that the unbroken one would have drawn.
    """

    def state_dict(self) -> Dict[str, Any]:
        """Detectron2's, the kind of scores that the loss trains, and how the images are drawn."""
        state = {**super().state_dict(), "activation": activation_of(self.model)}
        batches = self._batch_sampler()
        return state if batches is None else {**state, "batch_sampler": batches.state_dict()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Called when a training is resumed, before its loader is first used."""
        check_activation(self.model, {"trainer": state_dict})
        super().load_state_dict(state_dict)
        batches = self._batch_sampler()
        if batches is not None:
            batches.resume(state_dict["iteration"] + 1, state_dict.get("batch_sampler"))

    def _batch_sampler(self) -> Optional[ResumableBatchSampler]:
        """None for an iterable data set, which has an order of its own."""
        batches = getattr(self._trainer.data_loader, "batch_sampler", None)
        return batches if isinstance(batches, ResumableBatchSampler) else None

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """The model; with MODEL.LONG_TAIL.DECOUPLE, all but its classifier frozen."""
        with errors_name_paths(cfg.LAZY_CONFIG.FILE), errors_name_section(cfg, "MODEL"):
            model = build_detector(cfg)
        logging.getLogger("detectron2").info("Model:\n%s", model)
        if cfg.MODEL.LONG_TAIL.DECOUPLE:
            freeze_all_but_classifier(model, cfg.MODEL.LONG_TAIL.DECOUPLE)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module):
        return make_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return make_schedule(cfg, optimizer)

    def build_hooks(self) -> List[HookBase]:
        """Those of a trainer that survives faults, of class means, frozen models and TEST.AUG."""
        frozen = [FreezeNorms()] if self.cfg.MODEL.LONG_TAIL.DECOUPLE else []
        # Before checkpoints are written, as Detectron2's PreciseBN.
        result: List[HookBase] = [*frozen, ClassMeans(self.cfg), *super().build_hooks()]
        if self.cfg.TEST.AUG.ENABLED:
            result.append(hooks.EvalHook(0, self._evaluate_with_tta))
        return write_all_evaluations(result, self.build_writers, self.cfg.TEST.EVAL_PERIOD)

    def _evaluate_with_tta(self) -> Any:
        with self._preemption.evaluating():
            return self.test_with_tta(self.cfg, self.model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the checkpoint to continue from, or the one to start from.

        Raises:
            InputError: the checkpoint cannot be read, is calibrated for inference, lacks what is to
                be frozen, or is to be resumed with another loss.
        """
        if resume and self.checkpointer.has_checkpoint():
            with readable_checkpoint(self.checkpointer.get_checkpoint_file()):
                super().resume_or_load(resume)
            return
        with readable_checkpoint(self.cfg.MODEL.WEIGHTS):
            predictors = box_predictors(self.model)
            chosen = [set(predictor.adjustments) for predictor in predictors]
            use = self.cfg.MODEL.LONG_TAIL.DECOUPLE or "train"
            Checkpointer(self.model, use=use).load(self.cfg.MODEL.WEIGHTS)
            for predictor, names in zip(predictors, chosen):
                if set(predictor.adjustments) != names:
                    carried = ", ".join(sorted(set(predictor.adjustments) - names - {"tde"}))
                    raise InputError(
                        f"it carries {carried}, for inference: train what it was calibrated from, "
                        "or list the same in MODEL.ADJUSTMENTS"
                    )
                prepare_training(predictor, self.cfg.MODEL.LONG_TAIL.DECOUPLE)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """The training data; all images of the training and test sets are looked for first.

        Raises:
            InputError: some are missing, which would otherwise show in the middle of training.
        """
        if comm.is_main_process():
            for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
                check_images_exist(image_files(name), name, missing_data_hint())
        return build_train_loader(cfg, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_test_loader(cfg, dataset_name, build_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        """LVIS metrics for LVIS-format data sets, COCO metrics for COCO's.

        With several test sets each has a folder of its own, so that none overwrites another's.
        """
        if output_folder is None:
            output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            output_folder = os.path.join(output_folder, dataset_name)
        tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "lvis":
            options = cfg.TEST.LVIS_BACKEND, cfg.TEST.LVIS_EXTRA
            return LongTailEvaluator(dataset_name, tasks, output_folder, *options)
        if kind == "coco":
            return COCOEvaluator(dataset_name, tasks, output_dir=output_folder)
        raise InputError(
            f"DATASETS.TEST: {dataset_name} has evaluator_type {kind!r}; known are lvis and coco"
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> OrderedDict:
        """Evaluate on DATASETS.TEST; for LVIS metrics without full-size masks in between."""
        network = model.module if isinstance(model, DistributedDataParallel) else model
        kinds = {MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TEST}
        predictors = box_predictors(network)
        for name in cfg.DATASETS.TEST[:1]:
            warn_of_dominant_class(predictors, [p.adjustments for p in predictors], name)
        if cfg.MODEL.MASK_ON and kinds == {"lvis"} and isinstance(network, GeneralizedRCNN):
            model = RunLengthMasks(network)
        return evaluate(cls, cfg, model, evaluators)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: torch.nn.Module) -> OrderedDict:
        """Evaluate once more with Detectron2's test-time augmentation."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", metrics) for task, metrics in results.items())
