"""Register data sets in LVIS format from ``DATASETS.LVIS_CUSTOM`` of a config."""

import logging
import os
from collections import Counter
from typing import Any, Dict, List

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from ..errors import InputError
from .compact import CompactLvis
from .image_files import check_image_files
from .lvis_json import complete_categories
from .records import log_skipped

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


def register_lvis_json(name: str, json_file: str, image_root: str) -> List[Dict[str, Any]]:
    """Register an LVIS-format json with Detectron2's catalogs, replacing one of the same name.

    Args:
        name: of the data set.
        json_file: path of the annotations.
        image_root: folder that the images' ``file_name`` starts from.

    Returns:
        the data set's dicts, as the catalog will give them.

    Raises:
        InputError: the json or an image file cannot be used, or ``name`` is another data set's.
    """
    dataset = CompactLvis(json_file, image_root)
    _register(name, dataset, image_root, dataset.image_count)
    return dataset.to_list()


def _register(
    name: str, dataset: CompactLvis, image_root: str, train_counts: Dict[int, int]
) -> None:
    """Check a data set's images and put it into the catalogs.

    Args:
        name, image_root: see :func:`register_lvis_json`.
        dataset: that ``DatasetCatalog`` gives the dicts of.
        train_counts: see :func:`complete_categories`.
    """
    if name in DatasetCatalog.list() and not hasattr(MetadataCatalog.get(name), "lvis_categories"):
        raise InputError(f"A data set called {name!r} exists already; choose another name")
    num_empty = int((np.diff(dataset.annotation_ends, prepend=0) == 0).sum())
    log_skipped(dataset.skipped, num_empty, len(dataset), name)
    if comm.is_main_process():  # once is enough; a failure here ends the other ranks too
        keys = ("file_name", "width", "height")
        check_image_files(
            [{key: record[key] for key in keys} for record in dataset],
            name,
            f"Correct the data set's image_root ({image_root}), replace the files, or take the "
            f"images out of {dataset.json_file}.",
        )
    categories = complete_categories({"categories": dataset.categories}, train_counts)
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, dataset.to_list)
    MetadataCatalog.get(name).set(
        json_file=dataset.json_file,
        image_root=image_root,
        evaluator_type="lvis",
        thing_classes=[c["name"] for c in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        class_image_count=[{"id": c["id"], "image_count": c["image_count"]} for c in categories],
        lvis_categories=categories,
    )


def register_custom_sets(cfg: CfgNode) -> None:
    """Register all of ``DATASETS.LVIS_CUSTOM`` and make the rest of the config fit them.

    A json without frequencies gets them from the training split among these sets, since rare,
    common and frequent are about training images. If a training set has RLE masks,
    ``INPUT.MASK_FORMAT`` becomes ``"bitmask"``, the only format Detectron2 reads them in.

    Raises:
        InputError: an entry, its json or its images cannot be used.
    """
    datasets = {}
    entries = {}
    for entry in cfg.DATASETS.LVIS_CUSTOM:
        keys = {"name", "json", "image_root"}
        if (
            not isinstance(entry, dict)
            or set(entry) != keys
            or not all(isinstance(value, str) for value in entry.values())
        ):
            raise InputError(
                'DATASETS.LVIS_CUSTOM is a list of {"name": ..., "json": ..., "image_root": ...}, '
                f"got the entry {entry}"
            )
        if entry["name"] in entries:
            raise InputError(f"DATASETS.LVIS_CUSTOM has two data sets called {entry['name']!r}")
        json_file, image_root = resolve_path(entry["json"]), resolve_path(entry["image_root"])
        if not os.path.exists(json_file):
            raise InputError(
                f"DATASETS.LVIS_CUSTOM: the json of {entry['name']}, {entry['json']}, is neither "
                f"in the current folder nor in DETECTRON2_DATASETS. {missing_data_hint()}"
            )
        entries[entry["name"]] = {"json": json_file, "image_root": image_root}
        datasets[entry["name"]] = CompactLvis(json_file, image_root)

    train = [name for name in cfg.DATASETS.TRAIN if name in entries]
    train_counts = sum((Counter(datasets[name].image_count) for name in train), Counter())
    for name, entry in entries.items():
        dataset = datasets[name]
        if train:
            ids = [{c["id"] for c in d.categories} for d in (datasets[train[0]], dataset)]
            if ids[0] != ids[1]:
                raise InputError(
                    f"{entries[train[0]]['json']} and {entry['json']} do not list the same "
                    f"category ids: {sorted(ids[0] ^ ids[1])[:5]} are in one of them only"
                )
        counts = train_counts if train else dataset.image_count
        _register(name, dataset, entry["image_root"], counts)
        if name not in train:
            continue
        if cfg.MODEL.MASK_ON and "none" in dataset.masks:
            raise InputError(
                f"{entry['json']} has annotations without a segmentation; set MODEL.MASK_ON False "
                "to train on boxes alone"
            )
        if cfg.INPUT.MASK_FORMAT != "bitmask" and "rle" in dataset.masks:
            logger.info('%s has RLE masks: INPUT.MASK_FORMAT is now "bitmask"', name)
            cfg.INPUT.MASK_FORMAT = "bitmask"
