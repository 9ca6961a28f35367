"""One pass over training data with a trained detector: class means, mean direction, mean cosine."""

import contextlib
import zlib
from typing import Any, Iterator, List, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import ConcatDataset, Subset
from tqdm import tqdm

from ..data import TolerantMapper
from ..data.class_counts import objects_of
from ..data.loader import registered_dataset
from ..errors import InputError
from ..post_hoc import ForegroundStatistics, box_predictors


def build_single_pass_loader(cfg: CfgNode, max_images: Optional[int]):
    """Every image of DATASETS.TRAIN with objects once, in order, shared out among the ranks.

    Images are of test size and not augmented, their annotations as in training.
    """
    parts: List[Any] = []
    for name in cfg.DATASETS.TRAIN:
        dataset: Any = registered_dataset(name)
        parts.append(Subset(dataset, np.unique(objects_of(name)[0]).tolist()))
    if not sum(map(len, parts)):
        raise InputError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no annotated images")
    images: Any = ConcatDataset(parts)
    if max_images is not None and max_images < len(images):
        chosen = np.linspace(0, len(images) - 1, max_images).round().astype(int)
        images = Subset(images, chosen.tolist())
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = TolerantMapper(cfg, is_train=True, augmentations=[resize])
    return build_detection_test_loader(
        images, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


@contextlib.contextmanager
def _observed(model: Any, statistics: List[ForegroundStatistics]) -> Iterator[None]:
    """Training mode, in which no statistics change, with observers in place of the losses."""
    modes = [(module, module.training) for module in model.modules()]
    heads = model.roi_heads
    branches = heads.mask_on, heads.keypoint_on
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    for predictor, own in zip(box_predictors(model), statistics):
        predictor.observer = own.add
    heads.mask_on = heads.keypoint_on = False  # for the box features alone
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), EventStorage(), torch.random.fork_rng(devices):
            yield
    finally:
        heads.mask_on, heads.keypoint_on = branches
        for predictor in box_predictors(model):
            predictor.observer = predictor._features = None
        for module, training in modes:
            module.training = training


def foreground_statistics(
    cfg: CfgNode, model: Any, max_images: Optional[int] = None
) -> List[ForegroundStatistics]:
    """Statistics of every box predictor's foreground features over ``DATASETS.TRAIN``.

    RoIs are proposed, matched and sampled as in training, from images at test size and without
    augmentation. The sample of an image depends on its id alone, so that any number of
    processes gives the same result. Nothing of the model changes.

    Args:
        cfg: the config.
        model: a detector of this package.
        max_images: use only so many images, evenly spaced.

    Raises:
        InputError: the data cannot be used.
    """
    loader = build_single_pass_loader(cfg, max_images)
    statistics = [
        ForegroundStatistics(
            predictor.num_classes,
            predictor.bbox_pred.in_features,
            getattr(predictor.cls_score, "num_heads", 1),
            model.device,
        )
        for predictor in box_predictors(model)
    ]
    with _observed(model, statistics):
        for batch in tqdm(loader, unit="image", disable=not comm.is_main_process()):
            torch.manual_seed(zlib.crc32(str(batch[0]["image_id"]).encode()))
            model(batch)
    for own in statistics:
        own.all_reduce()
    return statistics
