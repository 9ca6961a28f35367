"""The images, objects and classes that a report is about."""

from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
from detectron2.data import MetadataCatalog

from ..data import register_lvis_json
from ..data.categories import complete_categories, count_images
from ..data.custom_sets import missing_data_hint
from ..data.image_files import check_images_exist
from ..data.lvis_json import read_lvis_json
from ..data.registered import table_of
from ..engine.checks import check_files
from ..errors import InputError
from ..evaluation.lvis_eval import encode_annotations


class DataSet(NamedTuple):
    """A data set in LVIS format.

    Attributes:
        name: as registered with Detectron2.
        ground_truth: see :func:`read_lvis_json`; images and categories by rising id, categories
            with ``name``, ``frequency`` and ``image_count``.
        encoded: the same with masks as RLE; None if no object has a mask.
        files: path of every image.
    """

    name: str
    ground_truth: Dict[str, Any]
    encoded: Optional[Dict[str, Any]]
    files: List[str]

    @property
    def frequencies(self) -> List[str]:
        return [category["frequency"] for category in self.ground_truth["categories"]]

    @property
    def names(self) -> List[str]:
        return [category["name"] for category in self.ground_truth["categories"]]

    def counts(self, key: str) -> np.ndarray:
        """``int[C]``: training images, or ``"objects"`` or ``"images"`` of this set."""
        categories = self.ground_truth["categories"]
        if key == "train":
            return np.array([c["image_count"] for c in categories])
        if key == "images":
            images = count_images(self.ground_truth)
            return np.array([images[c["id"]] for c in categories])
        numbers = {c["id"]: i for i, c in enumerate(categories)}
        classes = [numbers[a["category_id"]] for a in self.ground_truth["annotations"]]
        return np.bincount(np.array(classes, int), minlength=len(categories))


def read_dataset(name: str) -> DataSet:
    """Read a registered data set.

    Raises:
        InputError: it is not there, not in LVIS format, or lacks annotations or images.
    """
    check_files([name])
    table, metadata = table_of(name), MetadataCatalog.get(name)
    if table is None:
        raise InputError(f"{name} has no annotations in LVIS format: a report needs them")
    ground_truth = read_lvis_json(metadata.json_file)
    if not ground_truth["annotations"]:
        raise InputError(f"{metadata.json_file} has no annotations: there is nothing to compare")
    files = table.file_names()  # by rising id
    check_images_exist(files, name, missing_data_hint())
    categories = metadata.get("lvis_categories") or complete_categories(ground_truth)
    ground_truth["categories"] = sorted(categories, key=lambda category: category["id"])
    ground_truth["images"].sort(key=lambda image: image["id"])
    has_masks = any(a.get("segmentation") for a in ground_truth["annotations"])
    encoded = encode_annotations(ground_truth) if has_masks else None
    return DataSet(name, ground_truth, encoded, files)


def register_annotations(annotations: str, images: str) -> str:
    """Register a json and the folder of its images, under the json's path.

    Raises:
        InputError: one of them cannot be used.
    """
    register_lvis_json(annotations, annotations, images)
    return annotations
