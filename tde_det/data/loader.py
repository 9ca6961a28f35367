"""Detectron2's data loaders over :class:`CompactLvis` where a data set's dicts come from a json."""

import inspect
import logging
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils.file_io import PathManager
from torch.utils.data import ConcatDataset, Subset

from ..errors import InputError
from .compact import CompactLvis

logger = logging.getLogger(__name__)


def compact_dataset(name: str) -> Optional[CompactLvis]:
    """A registered data set in compact form, if its dicts are those of an LVIS-format json.

    That is: if :func:`register_lvis_json` or Detectron2's ``register_lvis_instances`` put it into
    the catalog. Nothing is known of the dicts that any other function there gives.

    Raises:
        InputError: the data set's json cannot be used.
    """
    function = dict(DatasetCatalog).get(name)  # its own get() calls the function
    owner = getattr(function, "__self__", None)
    if isinstance(owner, CompactLvis) and function == owner.to_list:
        return owner
    if inspect.isfunction(function) and (
        function.__code__ in register_lvis_instances.__code__.co_consts
    ):
        arguments = inspect.getclosurevars(function).nonlocals
        MetadataCatalog.get(name).set(**get_lvis_instances_meta(name))  # as load_lvis_json does
        json_file = PathManager.get_local_path(arguments["json_file"])
        return CompactLvis(json_file, arguments["image_root"], built_in=arguments["name"])
    return None


def registered_dataset(name: str) -> Union[CompactLvis, List[Dict[str, Any]]]:
    """The dicts of ``DatasetCatalog.get(name)``, in compact form where there is one."""
    return compact_dataset(name) or DatasetCatalog.get(name)


def image_files(name: str) -> List[Dict[str, str]]:
    """The ``file_name`` of every image of a registered data set, in a dict each."""
    dataset = registered_dataset(name)
    if isinstance(dataset, CompactLvis):
        return [{"file_name": path} for path in dataset.file_names()]
    return [{"file_name": record["file_name"]} for record in dataset]


def _log_classes(classes: np.ndarray, names: Sequence[str]) -> None:
    """Detectron2's table of how many objects each class has, given the class of every object."""
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    if class_names is None:
        return
    check_metadata_consistency("thing_classes", names)
    strange = classes[(classes < 0) | (classes >= len(class_names))]
    if len(strange):
        raise InputError(
            f"{', '.join(names)}: class {strange[0]} of an annotation is none of the "
            f"{len(class_names)} classes"
        )
    one_of_each = [{"category_id": i} for i in range(len(class_names))]
    as_one_image = {"annotations": [one_of_each[i] for i in classes.tolist()]}
    print_instances_class_histogram([as_one_image], class_names)


def _repeat_factor_sampler(cfg: CfgNode, classes: List[np.ndarray]) -> RepeatFactorTrainingSampler:
    """Detectron2's sampler, given the classes in every image."""
    dicts: Dict[int, Dict[str, int]] = {}
    images = [
        {"annotations": [dicts.setdefault(i, {"category_id": i}) for i in own.tolist()]}
        for own in classes
    ]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        images, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)


def build_train_loader(cfg: CfgNode, mapper: Callable):
    """``build_detection_train_loader(cfg, mapper=mapper)``: the same images in the same order.

    If one of ``DATASETS.TRAIN`` is in another format than LVIS, or the config asks for keypoints or
    precomputed proposals, it is Detectron2's own loader.

    Raises:
        InputError: a data set's json cannot be used, or has nothing to train on.
    """
    names = cfg.DATASETS.TRAIN
    datasets = [] if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS else names
    datasets = [d for d in map(compact_dataset, datasets) if d is not None]
    if not datasets or len(datasets) < len(names):
        return build_detection_train_loader(cfg, mapper=mapper)

    parts, classes, objects = [], [], []
    for dataset in datasets:
        kept = np.arange(len(dataset))
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            image_of = np.repeat(kept, np.diff(dataset.annotation_ends, prepend=0))
            kept = np.unique(image_of[~dataset.is_crowd])
        parts.append(Subset(dataset, kept.tolist()))
        in_images = np.split(dataset.classes, dataset.annotation_ends[:-1])
        classes += [in_images[i] for i in kept]
        objects.append(dataset.classes[~dataset.is_crowd])
    removed = sum(map(len, datasets)) - len(classes)
    logger.info("Removed %d images with no usable annotations. %d left.", removed, len(classes))
    if not classes:
        raise InputError(f"DATASETS.TRAIN: {', '.join(names)} have no annotations to train on")
    _log_classes(np.concatenate(objects), names)
    sampler = None  # Detectron2 makes the one that the config names
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        sampler = _repeat_factor_sampler(cfg, classes)
    return build_detection_train_loader(
        cfg, mapper=mapper, dataset=ConcatDataset(parts), sampler=sampler
    )


def build_test_loader(cfg: CfgNode, name: str, mapper: Callable):
    """``build_detection_test_loader(cfg, name, mapper=mapper)``: the same images in the same order.

    Raises:
        InputError: the data set's json cannot be used.
    """
    dataset = None if cfg.MODEL.LOAD_PROPOSALS else compact_dataset(name)
    if dataset is None:
        return build_detection_test_loader(cfg, name, mapper=mapper)
    _log_classes(dataset.classes[~dataset.is_crowd], [name])
    return build_detection_test_loader(
        dataset, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
