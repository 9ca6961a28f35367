"""How often each class occurs in the training sets."""

from typing import Sequence, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from ..errors import InputError
from ..losses import ClassCounts
from .compact import CompactLvis
from .loader import registered_dataset


def objects_of(name: str) -> Tuple[np.ndarray, np.ndarray, int]:
    """All objects of a registered data set, crowds left out.

    Returns:
        the image index and the class of every object, and the number of images.
    """
    dataset = registered_dataset(name)
    if isinstance(dataset, CompactLvis):
        image_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.annotation_ends, prepend=0))
        keep = ~dataset.is_crowd
        return image_of[keep], dataset.classes[keep], len(dataset)
    pairs = [
        (i, annotation["category_id"])
        for i, record in enumerate(dataset)
        for annotation in record.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    image_of, classes = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return image_of, classes, len(dataset)


def class_counts(names: Sequence[str], num_classes: int) -> ClassCounts:
    """Counts over all images of the data sets, those without objects included.

    Args:
        names: registered data sets.
        num_classes: C; classes are contiguous, in [0, C).

    Raises:
        InputError: a data set is unknown, cannot be read, has no objects, or other classes.
    """
    instances = np.zeros(num_classes, dtype=np.int64)
    images = np.zeros(num_classes, dtype=np.int64)
    num_images = 0
    for name in names:
        if name not in DatasetCatalog.list():
            raise InputError(f"class counts: no data set is called {name!r}")
        try:
            image_of, classes, size = objects_of(name)
        except OSError as error:
            raise InputError(f"class counts of {name}: {error}") from error
        strange = classes[(classes < 0) | (classes >= num_classes)]
        if len(strange):
            raise InputError(
                f"class counts: {name} has an object of class {strange[0]}, but "
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}"
            )
        instances += np.bincount(classes, minlength=num_classes)
        once = np.unique(image_of * num_classes + classes) % num_classes
        images += np.bincount(once, minlength=num_classes)
        num_images += size
    if not instances.any():
        raise InputError(f"class counts: {', '.join(names) or 'DATASETS.TRAIN'} has no objects")
    return ClassCounts(torch.from_numpy(instances), torch.from_numpy(images), num_images)
