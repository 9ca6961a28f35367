"""Benchmarks from disk: CIFAR's pickle trees, folders of images, and lists of image files."""

import os
import pickle
from typing import Dict, List, Optional, Sequence, Tuple, Type

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from ..errors import InputError
from .images import Benchmark, ImageFiles, ImageTensors
from .long_tail import long_tail_subset


class _LocalCIFAR10(CIFAR10):
    """CIFAR-10 without torchvision's checksums, so that other data in its format loads too."""

    train_list = [[name, None] for name, _ in CIFAR10.train_list]
    test_list = [[name, None] for name, _ in CIFAR10.test_list]
    meta = {**CIFAR10.meta, "md5": None}


class _LocalCIFAR100(CIFAR100):
    """CIFAR-100, likewise."""

    train_list = [[name, None] for name, _ in CIFAR100.train_list]
    test_list = [[name, None] for name, _ in CIFAR100.test_list]
    meta = {**CIFAR100.meta, "md5": None}


_CIFARS: Dict[str, Type[CIFAR10]] = {"cifar10": _LocalCIFAR10, "cifar100": _LocalCIFAR100}


def check_labels(labels: Tensor, class_names: Sequence[str], split: str) -> None:
    """Refuse labels that are no class, and classes without an image.

    Raises:
        InputError: naming the class.
    """
    if len(class_names) < 2:
        raise InputError(f"{split}: a classifier needs at least 2 classes, got {len(class_names)}")
    bad = labels[(labels < 0) | (labels >= len(class_names))]
    if len(bad):
        raise InputError(
            f"{split}: label {int(bad[0])} is out of range, since there are {len(class_names)} "
            f"classes (0 to {len(class_names) - 1})"
        )
    counts = torch.bincount(labels, minlength=len(class_names))
    empty = [class_names[i] for i in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        raise InputError(f"{split}: {len(empty)} classes have no image, such as {empty[0]!r}")


def cifar_benchmark(
    kind: str, root: str, imbalance_factor: float, largest: Optional[int] = None, seed: int = 0
) -> Benchmark:
    """CIFAR-LT: a long-tailed part of the training split, and the whole test split.

    Args:
        kind: ``"cifar10"`` or ``"cifar100"``.
        root: the folder ``cifar-10-batches-py`` (``cifar-100-python``), or the one it is in.
        imbalance_factor, largest, seed: see :func:`long_tail_subset`.

    Raises:
        InputError: the files are missing or not in CIFAR's format.
    """
    dataset = _CIFARS[kind]
    folder = os.path.abspath(root)
    if os.path.basename(folder) != dataset.base_folder:
        folder = os.path.join(folder, dataset.base_folder)
    names = [name for name, _ in dataset.train_list + dataset.test_list]
    for name in [*names, dataset.meta["filename"]]:
        if not os.path.isfile(os.path.join(folder, name)):
            raise InputError(
                f"{os.path.join(folder, name)} does not exist: --root must be the unpacked "
                f"{dataset.filename} (from {dataset.url}), or the folder it is in"
            )
    splits: List[ImageTensors] = []
    for is_train in (True, False):
        try:
            data = dataset(os.path.dirname(folder), train=is_train)
            images = torch.from_numpy(np.ascontiguousarray(data.data))
            labels, class_names = torch.tensor(data.targets, dtype=torch.int64), list(data.classes)
            if images.dtype != torch.uint8 or len(images) != len(labels):
                raise ValueError(f"{len(images)} images ({images.dtype}), {len(labels)} labels")
        except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"{folder} is not in CIFAR's format: {error!r}") from error
        check_labels(labels, class_names, f"{folder}, {'training' if is_train else 'test'} split")
        splits.append(ImageTensors(images.permute(0, 3, 1, 2), labels))
    train, test = splits
    kept = long_tail_subset(train.labels.numpy(), class_names, imbalance_factor, largest, seed)
    train = ImageTensors(train.images[kept], train.labels[kept])
    origin = f"CIFAR's own splits; training images chosen from seed {seed}."
    return Benchmark(train, test, class_names, origin)


def _read_folder(path: str) -> ImageFolder:
    try:
        return ImageFolder(path)
    except OSError as error:  # no folder, no classes, or a class without images
        raise InputError(f"{path} is no folder of one folder of images per class: {error}") from (
            error
        )


def folder_benchmark(
    root: str,
    image_size: int,
    imbalance_factor: Optional[float] = None,
    largest: Optional[int] = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Benchmark:
    """A folder of images, in one folder per class.

    Args:
        root: holds ``train/`` and ``val/`` (or ``test/``), each with the same classes; or the
            classes themselves, each of which is then split at random.
        image_size: side of the squares that images are cut to.
        imbalance_factor, largest, seed: see :func:`long_tail_subset`; None keeps all images.
        test_fraction: part of every class that a random split tests on.

    Raises:
        InputError: folders are missing, or differ in their classes, or an image cannot be read.
    """
    if os.path.isdir(os.path.join(root, "train")):
        tests = [s for s in ("val", "test") if os.path.isdir(os.path.join(root, s))]
        if not tests:
            raise InputError(f"{root} has train/, but neither val/ nor test/")
        origin = f"Trained on train/, tested on {tests[0]}/."
        train, test = (_read_folder(os.path.join(root, s)) for s in ("train", tests[0]))
        if train.classes != test.classes:
            differ = sorted(set(train.classes) ^ set(test.classes))
            raise InputError(
                f"{root}: train/ has {len(train.classes)} classes and {tests[0]}/ has "
                f"{len(test.classes)}; {differ[0]!r} is in one of them only"
            )
        train_samples, test_samples = train.samples, test.samples
        class_names = train.classes
    else:
        if not 0 < test_fraction < 1:
            raise InputError(f"--test-fraction must be in (0, 1), got {test_fraction}")
        origin = f"Tested on a random {test_fraction:g} of every class, chosen from seed {seed}."
        whole = _read_folder(root)
        class_names, rng = whole.classes, np.random.default_rng(seed)
        labels = np.array(whole.targets)
        is_test = np.zeros(len(labels), bool)
        for i, name in enumerate(class_names):
            members = rng.permutation(np.flatnonzero(labels == i))
            if len(members) < 2:
                raise InputError(f"class {name!r} of {root} has 1 image: none is left to test on")
            is_test[
                members[: min(max(round(test_fraction * len(members)), 1), len(members) - 1)]
            ] = 1
        train_samples = [s for s, t in zip(whole.samples, is_test) if not t]
        test_samples = [s for s, t in zip(whole.samples, is_test) if t]
    if imbalance_factor is not None:
        labels = np.array([label for _, label in train_samples])
        kept = long_tail_subset(labels, class_names, imbalance_factor, largest, seed)
        train_samples = [train_samples[i] for i in kept]
    return _from_files(train_samples, test_samples, class_names, image_size, root, origin)


def _from_files(
    train: Sequence[Tuple[str, int]],
    test: Sequence[Tuple[str, int]],
    class_names: List[str],
    image_size: int,
    source: str,
    origin: str,
) -> Benchmark:
    splits = []
    for samples, split in ((train, "training"), (test, "test")):
        labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
        check_labels(labels, class_names, f"{source}, {split} split")
        splits.append(ImageFiles([path for path, _ in samples], labels, image_size))
    return Benchmark(splits[0], splits[1], class_names, origin)


def read_list(path: str, root: str) -> List[Tuple[str, int]]:
    """Read a list of the form of ImageNet-LT's: ``relative/path.jpg label`` in every line.

    Returns:
        paths below ``root``, and labels.

    Raises:
        InputError: naming the file and the line.
    """
    samples = []
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        file, label = ["", *line.rsplit(maxsplit=1)][-2:]
        if not file.strip() or not label.isascii() or not label.isdigit():
            raise InputError(
                f"{path}, line {number}: expected `relative/path.jpg label` with a label from 0, "
                f"got {line!r}"
            )
        file = os.path.join(root, file.strip())
        if not os.path.isfile(file):
            raise InputError(f"{path}, line {number}: {file} does not exist")
        samples.append((file, int(label)))
    if not samples:
        raise InputError(f"{path} lists no image")
    return samples


def list_benchmark(train_list: str, test_list: str, root: str, image_size: int) -> Benchmark:
    """ImageNet-LT, Places-LT and others that come as lists of files, long-tailed already.

    Args:
        train_list, test_list: see :func:`read_list`. Classes are those of the training list.
        root: the folder that the paths start from.
        image_size: side of the squares that images are cut to.

    Raises:
        InputError: a file is missing, a line is broken, or the lists differ in their classes.
    """
    train, test = read_list(train_list, root), read_list(test_list, root)
    num_classes = max(label for _, label in train) + 1
    if num_classes > len(train):
        raise InputError(
            f"{train_list}: labels go up to {num_classes - 1}, with {len(train)} images in all"
        )
    names = [str(i) for i in range(num_classes)]
    source = f"{train_list} and {test_list}"
    return _from_files(train, test, names, image_size, source, "The lists' splits.")
