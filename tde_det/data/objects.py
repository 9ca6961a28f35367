"""All objects of the training sets: how often each class occurs, and where."""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from torch import Tensor

from ..class_counts import ClassCounts
from ..errors import InputError
from .lvis_table import LvisTable
from .registered import registered_dataset


class Objects(NamedTuple):
    """A objects of N images.

    Attributes:
        image_index: ``int64[A]``, in [0, N), ascending.
        classes: ``int64[A]``, of the model.
        is_crowd: ``bool[A]``, COCO's ``iscrowd``.
        num_images: N, images without objects included.
    """

    image_index: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    num_images: int

    def only(self, chosen: np.ndarray) -> "Objects":
        """Those where ``chosen``, a ``bool[A]``, is True."""
        columns = self.image_index[chosen], self.classes[chosen], self.is_crowd[chosen]
        return Objects(*columns, self.num_images)

    def without_crowds(self) -> "Objects":
        return self.only(~self.is_crowd)

    def check_classes(self, num_classes: int, names: Sequence[str]) -> None:
        """Refuse classes outside [0, C), crowds apart; ``names`` are those of the data sets."""
        classes = self.without_crowds().classes
        unknown = classes[(classes < 0) | (classes >= num_classes)]
        if len(unknown):
            raise InputError(
                f"{', '.join(names)}: class {unknown[0]} of an annotation is none of the "
                f"{num_classes} classes; is MODEL.ROI_HEADS.NUM_CLASSES right?"
            )


def objects_in(*datasets: Any) -> Objects:
    """The objects of tables, map-style data sets and lists of Detectron2's dicts, put together."""
    offsets = np.cumsum([0, *map(len, datasets)])
    image_index, classes, is_crowd = zip(*map(_columns, datasets))
    return Objects(
        np.concatenate([part + first for part, first in zip(image_index, offsets)]),
        np.concatenate(classes),
        np.concatenate(is_crowd),
        int(offsets[-1]),
    )


def _columns(dataset: Any) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first three of :class:`Objects`."""
    if isinstance(dataset, LvisTable):
        return dataset.image_index(), dataset.classes(), dataset.is_crowd()
    rows = [
        (i, annotation["category_id"], annotation.get("iscrowd", 0))
        for i, record in enumerate(dataset)
        for annotation in record.get("annotations", ())
    ]
    image_index, classes, is_crowd = np.array(rows, np.int64).reshape(-1, 3).T
    return image_index, classes, is_crowd != 0


def _centers(dataset: Any) -> np.ndarray:
    """x and y of all boxes' centres as shares of the image's width and height, NaN if unknown."""
    if isinstance(dataset, LvisTable):
        boxes = dataset.boxes()
        return (boxes[:, :2] + boxes[:, 2:] / 2) / dataset.sizes()[dataset.image_index()]
    centers = [
        _center(record, annotation)
        for record in dataset
        for annotation in record.get("annotations", ())
    ]
    return np.array(centers, np.float64).reshape(-1, 2)


def _center(record: Dict[str, Any], annotation: Dict[str, Any]) -> Tuple[float, float]:
    if not ("bbox" in annotation and {"width", "height"} <= set(record)):
        return np.nan, np.nan
    x, y, width, height = BoxMode.convert(
        list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS
    )
    return (x + width / 2) / record["width"], (y + height / 2) / record["height"]


def _read(names: Sequence[str], num_classes: int) -> Tuple[List[Any], Objects]:
    """Registered data sets, which are all there, and their objects, with classes in [0, C)."""
    for name in names:
        if name not in DatasetCatalog.list():
            raise InputError(f"No data set is called {name!r}")
    if not names:
        raise InputError("DATASETS.TRAIN names no data set")
    try:
        datasets = [registered_dataset(name) for name in names]
        objects = objects_in(*datasets)
    except OSError as error:
        raise InputError(f"{', '.join(names)} cannot be read: {error}") from error
    objects.check_classes(num_classes, names)
    return datasets, objects


def class_counts(names: Sequence[str], num_classes: int) -> ClassCounts:
    """Counts over all images of registered data sets, those without objects included.

    Raises:
        InputError: a data set cannot be used, or there are no objects.
    """
    image_index, classes, _, num_images = _read(names, num_classes)[1].without_crowds()
    if not len(classes):
        raise InputError(f"class counts: {', '.join(names)} has no objects")
    pairs = np.unique(image_index * num_classes + classes)
    instances = np.bincount(classes, minlength=num_classes)
    images = np.bincount(pairs % num_classes, minlength=num_classes)
    return ClassCounts(torch.from_numpy(instances), torch.from_numpy(images), num_images)


def box_centers(names: Sequence[str], num_classes: int) -> Tuple[Tensor, Tensor]:
    """Where the objects of registered data sets are.

    Returns:
        the class of every object, int64 ``Tensor[A]``, and its box's centre, float64
        ``Tensor[A, 2]``: x and y as shares of the image's width and height.

    Raises:
        InputError: a data set cannot be used, or lacks boxes or image sizes.
    """
    datasets, objects = _read(names, num_classes)
    centers = np.concatenate([_centers(dataset) for dataset in datasets])[~objects.is_crowd]
    if np.isnan(centers).any():
        raise InputError(
            f"{', '.join(names)} does not say where all objects are, or how large its images"
        )
    return torch.from_numpy(objects.without_crowds().classes), torch.from_numpy(centers)
