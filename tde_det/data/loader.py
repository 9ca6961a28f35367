"""Detectron2's data loaders over tables, with batches that a resumed training continues."""

import logging
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog
from detectron2.data import build as stock
from detectron2.data.detection_utils import check_metadata_consistency
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, SequentialSampler, Subset

from ..errors import InputError
from ..stop_signals import ignore_stop_signals
from .batch_sampler import ResumableBatchSampler
from .lvis_table import LvisTable
from .objects import Objects, objects_in
from .registered import table_of
from .samplers import (
    CLASS_SAMPLERS,
    check_sampler,
    class_sampler,
    draw_settings,
    warn_if_rfs_repeats_none,
)
from .seeded_dataset import SeededDataset

logger = logging.getLogger(__name__)


def _as_annotations(classes: np.ndarray) -> List[Dict[str, int]]:
    """What Detectron2 needs to count classes; equal ones are the same dict."""
    one_of_each = [{"category_id": i} for i in range(classes.max(initial=-1) + 1)]
    return [one_of_each[i] for i in classes.tolist()]


def _log_classes(objects: Objects, names: Sequence[str]) -> None:
    """Detectron2's table of how many objects each class has."""
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    if class_names is None:
        return
    check_metadata_consistency("thing_classes", names)
    objects.check_classes(len(class_names), names)
    annotations = _as_annotations(objects.without_crowds().classes)
    stock.print_instances_class_histogram([{"annotations": annotations}], class_names)


def _train_tables(cfg: CfgNode) -> List[LvisTable]:
    """The training sets, if all are tables and the model needs no other annotations than theirs."""
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        return []
    tables = [table for table in map(table_of, cfg.DATASETS.TRAIN) if table is not None]
    return tables if len(tables) == len(cfg.DATASETS.TRAIN) else []


def _images_of(tables: Sequence[LvisTable], cfg: CfgNode) -> Tuple[Any, np.ndarray, Objects]:
    """The images to train on, which of them are wide, and their objects."""
    names = cfg.DATASETS.TRAIN
    objects = objects_in(*tables)
    is_kept = np.ones(objects.num_images, bool)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        of_objects = objects.image_index[~objects.is_crowd]
        is_kept = np.bincount(of_objects, minlength=len(is_kept)) > 0
    kept = np.flatnonzero(is_kept)
    counts = len(is_kept) - len(kept), len(kept)
    logger.info("Removed %d images with no usable annotations. %d left.", *counts)
    if not len(kept):
        raise InputError(f"DATASETS.TRAIN: {', '.join(names)} have no annotations to train on")
    _log_classes(objects, names)
    objects = objects.only(is_kept[objects.image_index])
    image_index = (np.cumsum(is_kept) - 1)[objects.image_index]
    objects = objects._replace(image_index=image_index, num_images=len(kept))
    width, height = np.concatenate([table.sizes() for table in tables])[kept].T
    return Subset(ConcatDataset(tables), kept.tolist()), width > height, objects


def _which_are_wide(dataset: Any) -> np.ndarray:
    """Whether each image is wider than high; all False if the dicts do not say so."""
    try:
        return np.array([record["width"] > record["height"] for record in dataset], bool)
    except KeyError:
        logger.warning(
            "DATALOADER.ASPECT_RATIO_GROUPING does nothing: the training set does not say how wide "
            "and high its images are"
        )
        return np.zeros(len(dataset), bool)


def build_train_loader(cfg: CfgNode, mapper: Callable) -> Any:
    """``build_detection_train_loader(cfg, mapper=mapper)`` that can resume, with more samplers.

    With Detectron2's samplers it gives the images that Detectron2 gives with at most one worker:
    here the order, and what augmentations make of it, are the same for any number of workers.

    Raises:
        InputError: a data set's json cannot be used, or has nothing to train on, or no sampler has
            the name ``DATALOADER.SAMPLER_TRAIN``.
    """
    check_sampler(cfg)
    name, tables = cfg.DATALOADER.SAMPLER_TRAIN, _train_tables(cfg)
    is_grouped, objects = cfg.DATALOADER.ASPECT_RATIO_GROUPING, None
    is_wide: Optional[np.ndarray]
    if tables:
        dataset, is_wide, objects = _images_of(tables, cfg)
    else:
        any_sampler = SequentialSampler([])  # Detectron2 may not know the one of the config
        dataset = stock._train_loader_from_config(cfg, mapper, sampler=any_sampler)["dataset"]
        if isinstance(dataset, IterableDataset):  # has its own order
            return stock.build_detection_train_loader(cfg, mapper=mapper, dataset=dataset)
        is_wide = _which_are_wide(dataset) if is_grouped else None
    if name in CLASS_SAMPLERS:
        sampler = class_sampler(cfg, (objects or objects_in(dataset)).without_crowds())
    else:
        counted = dataset
        if objects is not None and name == "RepeatFactorTrainingSampler":
            warn_if_rfs_repeats_none(cfg, objects)
            annotations = _as_annotations(objects.classes)
            ends = np.searchsorted(objects.image_index, np.arange(len(dataset) + 1)).tolist()
            counted = [{"annotations": annotations[i:j]} for i, j in zip(ends, ends[1:])]
        sampler = stock._train_loader_from_config(cfg, mapper, dataset=counted)["sampler"]
    draws, groups = draw_settings(cfg, len(dataset)), is_wide if is_grouped else None
    seed = cfg.SEED if cfg.SEED >= 0 else None
    batches = ResumableBatchSampler(sampler, groups, cfg.SOLVER.IMS_PER_BATCH, draws, seed)
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return DataLoader(
        SeededDataset(dataset, mapper),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=stock.trivial_batch_collator,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # else it takes a number from the model's
    )


def build_test_loader(cfg: CfgNode, name: str, mapper: Callable) -> Any:
    """``build_detection_test_loader(cfg, name, mapper=mapper)``: the same images in the same order.

    Raises:
        InputError: the data set's json cannot be used.
    """
    table = None if cfg.MODEL.LOAD_PROPOSALS else table_of(name)
    if table is None:
        return stock.build_detection_test_loader(cfg, name, mapper=mapper)
    _log_classes(objects_in(table), [name])
    return stock.build_detection_test_loader(
        table, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
