"""Detectron2's data loaders over :class:`CompactLvis` where a data set's dicts come from a json."""

import functools
import inspect
import logging
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import _train_loader_from_config, print_instances_class_histogram
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils.file_io import PathManager
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
)

from ..errors import InputError
from .compact import CompactLvis
from .resumable_sampler import ResumableSampler
from .samplers import (
    CLASS_SAMPLERS,
    check_sampler,
    class_sampler,
    order_settings,
    repeat_factor_sampler,
)

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


def _join(
    datasets: Sequence[CompactLvis], cfg: CfgNode
) -> Tuple[Dataset, List[np.ndarray], List[np.ndarray]]:
    """The images to train on; for each the classes of all objects, and of those that are no crowd.

    Raises:
        InputError: there is nothing to train on, or an object has a class that does not exist.
    """
    names = cfg.DATASETS.TRAIN
    parts, classes, no_crowds, objects = [], [], [], []
    for dataset in datasets:
        images = kept = np.arange(len(dataset))
        image_of = np.repeat(images, np.diff(dataset.annotation_ends, prepend=0))
        objects.append(dataset.classes[~dataset.is_crowd])
        image_of_object = image_of[~dataset.is_crowd]
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            kept = np.unique(image_of_object)
        parts.append(Subset(dataset, kept.tolist()))
        in_images = np.split(dataset.classes, dataset.annotation_ends[:-1])
        classes += [in_images[i] for i in kept]
        in_images = np.split(objects[-1], np.searchsorted(image_of_object, images[1:]))
        no_crowds += [in_images[i] for i in kept]
    removed = sum(map(len, datasets)) - len(classes)
    logger.info("Removed %d images with no usable annotations. %d left.", removed, len(classes))
    if not classes:
        raise InputError(f"DATASETS.TRAIN: {', '.join(names)} have no annotations to train on")
    _log_classes(np.concatenate(objects), names)
    return ConcatDataset(parts), classes, no_crowds


def _object_classes(record: Dict[str, Any]) -> List[int]:
    """The classes of an image's objects that are no crowd."""
    annotations = record.get("annotations", ())
    return [a["category_id"] for a in annotations if not a.get("iscrowd", 0)]


def _shapes(dataset: Union[List[Dict[str, Any]], Dataset]) -> Callable[[int], bool]:
    """A function that tells if an image is wide, and raises KeyError if its dict does not say."""
    if not isinstance(dataset, list):
        return functools.partial(_is_wide, dataset)
    # Without the list itself, of which Detectron2 makes a packed copy.
    sized = ((i, record) for i, record in enumerate(dataset) if {"width", "height"} <= set(record))
    return {i: record["width"] > record["height"] for i, record in sized}.__getitem__


def _is_wide(dataset: Dataset, i: int) -> bool:
    return dataset[i]["width"] > dataset[i]["height"]


def build_train_loader(cfg: CfgNode, mapper: Callable):
    """``build_detection_train_loader(cfg, mapper=mapper)`` that can resume, with more samplers.

    By the samplers of Detectron2, it gives the same images in the same order.

    Raises:
        InputError: a data set's json cannot be used, or has nothing to train on, or no sampler has
            the name ``DATALOADER.SAMPLER_TRAIN``.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    check_sampler(cfg)
    datasets = [] if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS else cfg.DATASETS.TRAIN
    datasets = [d for d in map(compact_dataset, datasets) if d is not None]
    dataset: Any
    sampler: Optional[Sampler] = None  # Detectron2 makes the one that the config names
    if datasets and len(datasets) == len(cfg.DATASETS.TRAIN):
        dataset, classes, no_crowds = _join(datasets, cfg)
        if name == "RepeatFactorTrainingSampler":
            sampler = repeat_factor_sampler(cfg, classes)
        elif name in CLASS_SAMPLERS:
            sampler = class_sampler(cfg, no_crowds)
    else:
        any_sampler = SequentialSampler([])  # Detectron2 may not know the one of the config
        dataset = _train_loader_from_config(cfg, mapper, sampler=any_sampler)["dataset"]
        if name in CLASS_SAMPLERS and not isinstance(dataset, IterableDataset):
            sampler = class_sampler(cfg, list(map(_object_classes, dataset)))
    arguments = _train_loader_from_config(cfg, mapper, dataset=dataset, sampler=sampler)
    if arguments["sampler"] is not None:
        arguments["sampler"] = ResumableSampler(
            arguments["sampler"],
            order_settings(cfg, len(dataset)),
            ims_per_batch=cfg.SOLVER.IMS_PER_BATCH,
            is_grouped=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            is_wide=_shapes(dataset),
        )
    return build_detection_train_loader(**arguments)


def sampler_of(loader: Any) -> Optional[ResumableSampler]:
    """The sampler of a loader that :func:`build_train_loader` made; None for others."""
    if isinstance(loader, AspectRatioGroupedDataset):
        loader = loader.dataset
    sampler = getattr(getattr(loader, "dataset", None), "sampler", None)
    return sampler if isinstance(sampler, ResumableSampler) else None


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
