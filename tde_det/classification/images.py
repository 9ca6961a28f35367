"""Labelled images, in memory or in files, as batches of ``uint8[N, 3, H, W]`` with labels."""

from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torchvision import transforms

from ..data.read_image import read_image
from ..errors import InputError
from .accuracy import split_classes
from .settings import Machine

Batch = Tuple[Tensor, Tensor]
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)


def random_crop_flip(images: Tensor) -> Tensor:
    """Shift every image by up to an eighth of its side, black around it, and mirror half of them.

    CIFAR's usual augmentation (He et al., 2016), for a whole ``Tensor[N, C, H, W]`` at once.
    """
    n, _, height, width = images.shape
    pad = height // 8
    padded = F.pad(images, [pad] * 4)
    top, left = torch.randint(0, 2 * pad + 1, (2, n, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    crops = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)  # from [N, H, W, C]


class ImageTensors(Dataset):
    """Small images in memory: ``uint8[N, 3, H, W]`` and labels ``int64[N]``."""

    augmented = False

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """A batch."""
        images = self.images[indices]
        return random_crop_flip(images) if self.augmented else images, self.labels[indices]


class ImageFiles(Dataset):
    """N image files of any size, cut to squares of ``size`` pixels as ImageNet's usually are.

    Raises:
        InputError: a file is missing or no image; damage that only decoding finds, when decoded.
    """

    augmented = False

    def __init__(self, paths: Sequence[str], labels: Tensor, size: int):
        self.paths, self.labels = list(paths), labels
        to_tensor, jitter = transforms.PILToTensor(), transforms.ColorJitter(0.4, 0.4, 0.4)
        crop_flip = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        self.train_transform = transforms.Compose([*crop_flip, jitter, to_tensor])
        crop = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
        self.test_transform = transforms.Compose([*crop, to_tensor])
        for path in self.paths:  # reads headers only
            try:
                Image.open(path).close()
            except _UNREADABLE as error:
                raise InputError(f"{path} cannot be read as an image: {error}") from error

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int]) -> Union[Batch, InputError]:
        """A batch, or an error, to which DataLoader would add a traceback if it were raised."""
        transform = self.train_transform if self.augmented else self.test_transform
        images = []
        for i in indices:
            try:
                images.append(transform(Image.fromarray(read_image(self.paths[i], "RGB"))))
            except InputError as error:
                return error
        return torch.stack(images), self.labels[indices]


Images = Union[ImageTensors, ImageFiles]


class Benchmark(NamedTuple):
    """A training split, a test split, and their classes."""

    train: Images
    test: Images
    class_names: List[str]
    origin: str  # where the splits come from, in words

    @property
    def train_counts(self) -> Tensor:
        """Training images of each class: ``int64[C]``."""
        return torch.bincount(self.train.labels, minlength=len(self.class_names))

    def describe(self) -> Dict[str, Any]:
        """Numbers of classes and images, by name."""
        counts = self.train_counts
        return {
            "classes": len(counts),
            **{f"{k}_classes": int(v.sum()) for k, v in split_classes(counts).items()},
            "train_images": len(self.train),
            "test_images": len(self.test),
            "largest_class": int(counts.max()),
            "smallest_class": int(counts.min()),
            "splits": self.origin,
        }


def batches(
    images: Images, batch_size: int, machine: Machine, sampler: Optional[Iterable[int]] = None
) -> Iterator[Batch]:
    """Go through a split once; the last batch may be smaller.

    Args:
        sampler: the images to train on, in this order, varied at random; None: all, as they are.

    Raises:
        InputError: an image cannot be read.
    """
    images.augmented = sampler is not None
    workers = machine.workers if isinstance(images, ImageFiles) else 0
    indices = BatchSampler(sampler or range(len(images)), batch_size, drop_last=False)
    for batch in DataLoader(images, sampler=indices, batch_size=None, num_workers=workers):
        if isinstance(batch, InputError):
            raise batch
        pixels, labels = batch
        yield pixels.to(machine.device), labels.to(machine.device)
