"""How often each class occurs in a training set."""

from typing import NamedTuple

from torch import Tensor


class ClassCounts(NamedTuple):
    """Class frequencies of a training set.

    Attributes:
        instances: ``Tensor[C]``, objects of each class.
        images: ``Tensor[C]``, images that contain each class.
        num_images: images in all.
    """

    instances: Tensor
    images: Tensor
    num_images: int
