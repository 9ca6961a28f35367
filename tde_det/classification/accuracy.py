"""Top-1 accuracy of all classes, and of those with many, some and few training images.

Source of the splits: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.
"""

import math
from typing import Dict

import torch
from torch import Tensor

MANY_ABOVE = 100
FEW_BELOW = 20
SPLITS = ("all", "many", "medium", "few")


def split_classes(train_counts: Tensor) -> Dict[str, Tensor]:
    """Which classes each split has: ``int[C]`` training images → ``bool[C]`` per split."""
    many, few = train_counts > MANY_ABOVE, train_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def accuracy_by_split(predicted: Tensor, labels: Tensor, train_counts: Tensor) -> Dict[str, float]:
    """Accuracies in percent.

    Args:
        predicted: ``int64[N]``, the class of the highest score.
        labels: ``int64[N]``.
        train_counts: ``int64[C]``, training images of each class.

    Returns:
        ``all``: over all images; ``many`` (> 100 training images), ``medium`` and ``few`` (< 20):
        the mean of the classes' accuracies, NaN without such classes. A class without test images
        has no accuracy.
    """
    correct = (predicted == labels).double()
    num_classes = len(train_counts)
    images = torch.bincount(labels, minlength=num_classes)
    per_class = torch.bincount(labels, correct, minlength=num_classes) / images
    accuracy = {"all": 100 * float(correct.mean())}
    for split, classes in split_classes(train_counts).items():
        members = per_class[classes & (images > 0)]
        accuracy[split] = 100 * float(members.mean()) if len(members) else math.nan
    return accuracy
