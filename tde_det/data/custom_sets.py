"""Register data sets in LVIS format from ``DATASETS.LVIS_CUSTOM`` of a config."""

import logging
import os
from collections import Counter
from typing import Any, Dict, List

import msgspec
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..errors import InputError
from .categories import complete_categories
from .image_files import check_image_files
from .lvis_table import LvisTable

logger = logging.getLogger(__name__)


def datasets_root() -> str:
    """The folder that Detectron2's built-in data sets lie in."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))


def missing_data_hint() -> str:
    """Where data sets are looked for, and the ways to get them there."""
    return (
        f"DETECTRON2_DATASETS is {os.getenv('DETECTRON2_DATASETS', 'not set')}, so data sets are "
        f"looked for in {os.path.abspath(datasets_root())}. Set it to the folder that holds lvis/ "
        "and coco/, or download them with `python datasets/prepare_lvis.py`, or use the embedded "
        "data set: `python datasets/build_mini_lvis.py` and configs/mini_lvis_cascade_tde.yaml."
    )


def resolve_path(path: str) -> str:
    """A relative path is looked for in the current folder, then in ``DETECTRON2_DATASETS``."""
    path = os.path.expanduser(path)
    if os.path.exists(path) or os.path.isabs(path):
        return path
    return os.path.join(datasets_root(), path)


def register_lvis_json(
    name: str, json_file: str, image_root: str, check_images: bool = True
) -> List[Dict[str, Any]]:
    """Register an LVIS-format json with Detectron2's catalogs, replacing one of the same name.

    Args:
        check_images: whether to decode every image once.

    Returns:
        the data set's dicts, as the catalog will give them.

    Raises:
        InputError: the json or an image file cannot be used, or ``name`` is another data set's.
    """
    dataset = LvisTable(json_file, image_root)
    _register(name, dataset, dataset.image_count, check_images)
    return list(dataset)


def _register(
    name: str, dataset: LvisTable, train_counts: Dict[int, int], check_images: bool
) -> None:
    """Check a data set's images and put it into the catalogs."""
    if name in DatasetCatalog.list() and not hasattr(MetadataCatalog.get(name), "lvis_categories"):
        raise InputError(f"A data set called {name!r} exists already; choose another name")
    for reason, count in dataset.skipped().items():
        logger.warning("%s: skipped %d annotations with %s", name, count, reason)
    num_empty = len(dataset) - len(np.unique(dataset.image_index()))
    if num_empty:
        logger.info("%s: %d of %d images have no annotations", name, num_empty, len(dataset))
    if check_images and comm.is_main_process():
        # Once is enough; a failure here ends the other ranks too.
        hint = (
            f"Correct the data set's image_root ({dataset.image_root}), replace the files, or take "
            f"the images out of {dataset.json_file}."
        )
        check_image_files(dataset.file_names(), dataset.sizes().tolist(), name, hint)
    categories = complete_categories({"categories": dataset.categories}, train_counts)
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: list(dataset))
    MetadataCatalog.get(name).set(
        json_file=dataset.json_file,
        image_root=dataset.image_root,
        evaluator_type="lvis",
        thing_classes=[c["name"] for c in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        class_image_count=[{"id": c["id"], "image_count": c["image_count"]} for c in categories],
        lvis_categories=categories,
        lvis_table=dataset,
    )


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    json: str
    image_root: str


def _read_entries(entries: List[Any], allow_outside_root: bool) -> Dict[str, LvisTable]:
    """The data sets of ``DATASETS.LVIS_CUSTOM``, by name."""
    datasets: Dict[str, LvisTable] = {}
    for given in entries:
        try:
            entry = msgspec.convert(given, _Entry)
        except msgspec.ValidationError as error:
            raise InputError(
                'DATASETS.LVIS_CUSTOM is a list of {"name": ..., "json": ..., "image_root": ...}, '
                f"got the entry {given}: {error}"
            ) from None
        if entry.name in datasets:
            raise InputError(f"DATASETS.LVIS_CUSTOM has two data sets called {entry.name!r}")
        json_file = resolve_path(entry.json)
        if not os.path.exists(json_file):
            raise InputError(
                f"DATASETS.LVIS_CUSTOM: the json of {entry.name}, {entry.json}, is neither in the "
                f"current folder nor in DETECTRON2_DATASETS. {missing_data_hint()}"
            )
        datasets[entry.name] = LvisTable(
            json_file, resolve_path(entry.image_root), allow_outside_root=allow_outside_root
        )
    return datasets


def _check_same_categories(first: LvisTable, other: LvisTable) -> None:
    """Two jsons mean the same class by the same id, as far as they name their classes."""
    names, others = ({c["id"]: c.get("name") for c in table.categories} for table in (first, other))
    where = f"{first.json_file} and {other.json_file}"
    differing = names.keys() ^ others.keys()
    if differing:
        raise InputError(
            f"{where} do not list the same category ids: {sorted(differing)[:5]} are in one of "
            "them only"
        )
    for i, name in names.items():
        if None not in (name, others[i]) and name != others[i]:
            raise InputError(
                f"{where} have other names for category {i}, {name!r} and {others[i]!r}: number "
                "and name the classes alike in both"
            )


def register_custom_sets(cfg: CfgNode, check_images: bool = True) -> None:
    """Register all of ``DATASETS.LVIS_CUSTOM`` and make the rest of the config fit them.

    A json without frequencies gets them from the training split among these sets, since rare,
    common and frequent are about training images. If a training set has RLE masks,
    ``INPUT.MASK_FORMAT`` becomes ``"bitmask"``, the only format Detectron2 reads them in.

    Args:
        check_images: whether to decode every image once.

    Raises:
        InputError: an entry, its json or its images cannot be used.
    """
    datasets = _read_entries(cfg.DATASETS.LVIS_CUSTOM, cfg.DATASETS.ALLOW_OUTSIDE_ROOT)
    train = [name for name in cfg.DATASETS.TRAIN if name in datasets]
    train_counts = sum((Counter(datasets[name].image_count) for name in train), Counter())
    for name, dataset in datasets.items():
        if train:
            _check_same_categories(datasets[train[0]], dataset)
        counts = train_counts if train else dataset.image_count
        _register(name, dataset, counts, check_images)
        mask_kinds = dataset.mask_kinds() if name in train else set()
        if cfg.MODEL.MASK_ON and "none" in mask_kinds:
            raise InputError(
                f"{dataset.json_file} has annotations without a segmentation; set MODEL.MASK_ON "
                "False to train on boxes alone"
            )
        if cfg.INPUT.MASK_FORMAT != "bitmask" and "rle" in mask_kinds:
            logger.info('%s has RLE masks: INPUT.MASK_FORMAT is now "bitmask"', name)
            cfg.INPUT.MASK_FORMAT = "bitmask"
