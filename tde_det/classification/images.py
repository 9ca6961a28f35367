"""Labelled images, in memory or in files, as batches of ``uint8[N, 3, H, W]`` with labels."""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from ..errors import InputError

Batch = Tuple[Tensor, Tensor]


def random_crop_flip(images: Tensor) -> Tensor:
    """Shift every image by up to an eighth of its side, black around it, and mirror half of them.

    CIFAR's usual augmentation (He et al., 2016), for a whole batch at once.

    Args:
        images: ``Tensor[N, C, H, W]``, any type.
    """
    n, _, height, width = images.shape
    pad = height // 8
    padded = F.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, n, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    index = torch.arange(n)[:, None, None]
    crops = padded[index, :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return crops.permute(0, 3, 1, 2)


class ImageTensors(Dataset):
    """Small images, all in memory.

    Args:
        images: ``uint8[N, 3, H, W]``.
        labels: ``int64[N]``.
    """

    augmented = False

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch; DataLoader asks for it at once instead of image by image."""
        index = torch.as_tensor(indices)
        images = self.images[index]
        return random_crop_flip(images) if self.augmented else images, self.labels[index]


class ImageFiles(Dataset):
    """Image files of any size, cut to squares as ImageNet's usually are.

    Args:
        paths: N of them.
        labels: ``int64[N]``.
        size: side of the squares in pixels.

    Raises:
        InputError: a file is missing or no image; what only decoding can find, when it is decoded.
    """

    augmented = False

    def __init__(self, paths: Sequence[str], labels: Tensor, size: int):
        self.paths, self.labels = list(paths), labels
        self.train_transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(0.4, 0.4, 0.4),
                transforms.PILToTensor(),
            ]
        )
        self.test_transform = transforms.Compose(
            [
                transforms.Resize(round(size * 256 / 224)),
                transforms.CenterCrop(size),
                transforms.PILToTensor(),
            ]
        )
        for path in self.paths:  # reads headers only
            try:
                with Image.open(path):
                    pass
            except (OSError, Image.DecompressionBombError) as error:
                raise InputError(f"{path} cannot be read as an image: {error}") from error

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Union[Batch, InputError]:
        """A batch, or what is wrong with it: a DataLoader's worker would garble an exception."""
        transform = self.train_transform if self.augmented else self.test_transform
        images = []
        for i in indices:
            try:
                with Image.open(self.paths[i]) as image:
                    images.append(transform(image.convert("RGB")))
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                return InputError(f"{self.paths[i]} cannot be read as an image: {error}")
        return torch.stack(images), self.labels[torch.as_tensor(indices)]


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


class Machine(NamedTuple):
    """What computes.

    Attributes:
        device: of PyTorch.
        workers: processes that read image files; images in memory need none.
    """

    device: torch.device
    workers: int = 0


def _as_it_is(batch):
    return batch


def batches(
    images: Images,
    batch_size: int,
    machine: Machine,
    *,
    augment: bool = False,
    sampler: Optional[Sampler] = None,
) -> Iterator[Batch]:
    """Go through a split once.

    Args:
        images: the split.
        batch_size: the last batch may be smaller.
        machine: reads the files, and gets the batches on its device.
        augment: vary the images at random.
        sampler: indices to take, in this order; None: all, in theirs.

    Raises:
        InputError: an image cannot be read.
    """
    images.augmented = augment
    loader = DataLoader(
        images,
        batch_size,
        sampler=sampler,
        num_workers=machine.workers if isinstance(images, ImageFiles) else 0,
        collate_fn=_as_it_is,
        pin_memory=False,
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        pixels, labels = (part.to(machine.device, non_blocking=True) for part in batch)
        yield pixels, labels
