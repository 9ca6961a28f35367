"""One pass over training data with a trained detector: class means, mean direction, mean cosine."""

import contextlib
import zlib
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import ConcatDataset, Subset
from tqdm import tqdm

from ..data.objects import Objects, objects_in
from ..data.registered import registered_dataset
from ..errors import InputError
from ..foreground_statistics import ForegroundStatistics
from ..modeling import box_predictors
from ..modeling.roi_heads import Stage, run_stages
from .lazy_config import build_mapper


def some_of_each_class(objects: Objects, count: int) -> np.ndarray:
    """Indices of up to ``count`` images of every class, evenly spaced, each image once."""
    classes, images = np.unique(np.stack([objects.classes, objects.image_index]), axis=1)
    chosen = [images[:0]]
    for i in np.unique(classes):
        its = images[classes == i]
        chosen.append(its[np.linspace(0, len(its) - 1, min(count, len(its))).round().astype(int)])
    return np.unique(np.concatenate(chosen))


def build_loader(cfg: CfgNode, max_images: Optional[int], images_per_class: Optional[int] = None):
    """Every image of DATASETS.TRAIN with objects once, in order, shared out among the ranks.

    Images are of test size and not augmented, their annotations as in training. Arguments are those
    of :func:`labelled_stages`.
    """
    parts: List[Any] = []
    for name in cfg.DATASETS.TRAIN:
        dataset: Any = registered_dataset(name)
        objects = objects_in(dataset).without_crowds()
        if images_per_class is None:
            annotated = np.unique(objects.image_index)
        else:
            annotated = some_of_each_class(objects, images_per_class)
        parts.append(Subset(dataset, annotated.tolist()))
    if not sum(map(len, parts)):
        raise InputError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no annotated images")
    images: Any = ConcatDataset(parts)
    if max_images is not None and max_images < len(images):
        chosen = np.linspace(0, len(images) - 1, max_images).round().astype(int)
        images = Subset(images, chosen.tolist())
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    # Nothing is cropped, whatever INPUT.CROP and INPUT.LSJ say: boxes are those of the data set.
    mapper = build_mapper(cfg, is_train=True, augmentations=[resize], recompute_boxes=False)
    return build_detection_test_loader(
        images, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


@contextlib.contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode, but for batch norm, whose statistics stay; the old modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _stages_of(model: Any, batch: List[Dict[str, Any]]) -> List[Stage]:
    """The box stages of a batch, whose RoIs are proposed, matched and sampled as in training."""
    images = model.preprocess_image(batch)
    targets = [entry["instances"].to(model.device) for entry in batch]
    features = model.backbone(images.tensor)
    if model.proposal_generator is not None:
        proposals, _ = model.proposal_generator(images, features, targets)
    else:
        proposals = [entry["proposals"].to(model.device) for entry in batch]
    proposals = model.roi_heads.label_and_sample_proposals(proposals, targets)
    return run_stages(model.roi_heads, features, proposals, targets)


@torch.no_grad()
def labelled_stages(
    cfg: CfgNode,
    model: Any,
    max_images: Optional[int] = None,
    images_per_class: Optional[int] = None,
) -> Iterator[List[Stage]]:
    """The box stages of every image of ``DATASETS.TRAIN``, with RoIs labelled as in training.

    Images are of test size, without augmentation. The sample of RoIs of an image depends on its id
    alone, so that any number of processes gives the same result. Nothing of the model changes.

    Args:
        cfg: the config.
        model: a detector of this package.
        max_images: use only so many images, evenly spaced.
        images_per_class: use only so many images of every class of each data set.

    Raises:
        InputError: the data cannot be used.
    """
    loader = build_loader(cfg, max_images, images_per_class)
    devices = [model.device] if model.device.type == "cuda" else []
    with _training_mode(model), EventStorage(), torch.random.fork_rng(devices):
        for batch in tqdm(loader, unit="image", disable=not comm.is_main_process()):
            torch.manual_seed(zlib.crc32(str(batch[0]["image_id"]).encode()))
            yield _stages_of(model, batch)


@torch.no_grad()
def foreground_statistics(
    cfg: CfgNode,
    model: Any,
    max_images: Optional[int] = None,
    images_per_class: Optional[int] = None,
) -> List[ForegroundStatistics]:
    """Statistics of every box predictor's foreground features over ``DATASETS.TRAIN``.

    Arguments and errors are those of :func:`labelled_stages`.
    """
    statistics = [
        ForegroundStatistics(
            predictor.num_classes,
            predictor.bbox_pred.in_features,
            predictor.cls_score.num_heads if predictor.is_normalized else 1,
            model.device,
        )
        for predictor in box_predictors(model)
    ]
    for stages in labelled_stages(cfg, model, max_images, images_per_class):
        for stage, sums in zip(stages, statistics):
            labels = torch.cat([p.gt_classes for p in stage.proposals])
            sums.add(stage.predictions[2], labels)
    for sums in statistics:
        sums.all_reduce()
    return statistics
