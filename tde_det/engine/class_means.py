"""Class means of adjustments, measured in training before the model is evaluated or done."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch.nn.parallel import DistributedDataParallel

from ..modeling import box_predictors
from ..modeling.build import TrainingSet, needs_class_means
from .feature_statistics import foreground_statistics

logger = logging.getLogger(__name__)

# More images of a class move its mean by less than the images that there are differ: with 30, the
# rare classes, which means are for, are seen whole, and LVIS's 100,000 images are not.
IMAGES_PER_CLASS = 30


class ClassMeans(HookBase):
    """Measures what ``ncm`` and ``prototypes`` in MODEL.ADJUSTMENTS need.

    It does so before each evaluation in training and after the last iteration, in one pass over
    some images of every class. A training that is resumed after its last iteration, with other
    adjustments, measures before it ends. Nothing happens with adjustments that need no means.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg

    def before_train(self) -> None:
        if self.trainer.start_iter >= self.trainer.max_iter:
            self._measure()

    def after_step(self) -> None:
        done, period = self.trainer.iter + 1, self._cfg.TEST.EVAL_PERIOD
        if done == self.trainer.max_iter or (period > 0 and done % period == 0):
            self._measure()

    @torch.no_grad()
    def _measure(self) -> None:
        model = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        stages = [p.adjustments for p in box_predictors(model)]
        if not any(needs_class_means(name) for adjustments in stages for name in adjustments):
            return
        logger.info("Measuring class means: up to %d images of every class", IMAGES_PER_CLASS)
        statistics = foreground_statistics(self._cfg, model, images_per_class=IMAGES_PER_CLASS)
        for adjustments, features in zip(stages, statistics):
            data = TrainingSet(self._cfg, features)
            for name in filter(needs_class_means, adjustments):
                for key, statistic in adjustments[name].named_buffers():
                    statistic.copy_(getattr(data, key))
