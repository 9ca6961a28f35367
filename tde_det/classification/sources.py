"""Benchmarks from disk: CIFAR, folders of images, and lists of image files."""

import os
import re
from typing import List, Optional, Tuple

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from ..data.image_files import leads_out
from ..errors import InputError
from .images import Benchmark, ImageFiles, ImageTensors
from .long_tail import long_tail_subset

Samples = List[Tuple[str, int]]  # paths and labels


def cifar_benchmark(
    kind: str, root: str, imbalance_factor: float, largest_class: Optional[int], seed: int
) -> Benchmark:
    """CIFAR-LT: a part of the training split, see `long_tail_subset`, and the whole test split.

    Args:
        kind: ``"cifar10"`` or ``"cifar100"``.
        root: the folder ``cifar-10-batches-py`` (``cifar-100-python``), or the one it is in.

    Raises:
        InputError: the files are missing or damaged.
    """
    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[kind]
    folder = os.path.abspath(root).removesuffix(os.sep + dataset.base_folder)
    try:
        train, test = (dataset(folder, train=is_train) for is_train in (True, False))
    except RuntimeError as error:
        raise InputError(
            f"{os.path.join(folder, dataset.base_folder)} is missing or damaged: root must be the "
            f"unpacked {dataset.filename} (from {dataset.url}), or the folder it is in"
        ) from error
    labels = np.array(train.targets)
    kept = long_tail_subset(labels, train.classes, imbalance_factor, largest_class, seed)
    splits = [
        ImageTensors(torch.from_numpy(images).permute(0, 3, 1, 2), torch.as_tensor(targets))
        for images, targets in ((train.data[kept], labels[kept]), (test.data, test.targets))
    ]
    origin = f"CIFAR's own splits; training images chosen from seed {seed}."
    return Benchmark(splits[0], splits[1], train.classes, origin)


def _read_folder(*path: str) -> ImageFolder:
    try:
        return ImageFolder(os.path.join(*path))
    except OSError as error:  # no folder, no classes, or a class without images
        raise InputError(
            f"{os.path.join(*path)} is no folder of one folder of images per class: {error}"
        ) from error


def _split_folder(root: str, fraction: float, seed: int) -> Tuple[Samples, Samples, List[str]]:
    """Split every class at random, with at least one image on either side."""
    if not 0 < fraction < 1:
        raise InputError(f"test_fraction must be in (0, 1), got {fraction}")
    whole, rng = _read_folder(root), np.random.default_rng(seed)
    is_test = np.zeros(len(whole), bool)
    for i, name in enumerate(whole.classes):
        members = rng.permutation(np.flatnonzero(np.equal(whole.targets, i)))
        if len(members) < 2:
            raise InputError(f"class {name!r} of {root} has 1 image: none is left to test on")
        number = min(max(round(fraction * len(members)), 1), len(members) - 1)
        is_test[members[:number]] = True
    train, test = ([whole.samples[i] for i in np.flatnonzero(s)] for s in (~is_test, is_test))
    return train, test, whole.classes


def folder_benchmark(
    root: str,
    image_size: int,
    imbalance_factor: Optional[float] = None,
    largest_class: Optional[int] = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Benchmark:
    """A folder of images, in one folder per class.

    Args:
        root: holds ``train/`` and ``val/`` (or ``test/``), each with the same classes; or the
            classes themselves, of each of which a random ``test_fraction`` is then for the test.
        imbalance_factor: see :func:`long_tail_subset`; None keeps all images.

    Raises:
        InputError: folders are missing, or differ in their classes, or an image cannot be read.
    """
    if os.path.isdir(os.path.join(root, "train")):
        tests = [s for s in ("val", "test") if os.path.isdir(os.path.join(root, s))]
        if not tests:
            raise InputError(f"{root} has train/, but neither val/ nor test/")
        first, second = _read_folder(root, "train"), _read_folder(root, tests[0])
        train, test, names = first.samples, second.samples, first.classes
        differ = sorted(set(names) ^ set(second.classes))
        if differ:
            raise InputError(
                f"{root}: train/ has {len(names)} classes and {tests[0]}/ has "
                f"{len(second.classes)}; {differ[0]!r} is in one of them only"
            )
        origin = f"Trained on train/, tested on {tests[0]}/."
    else:
        train, test, names = _split_folder(root, test_fraction, seed)
        origin = f"Tested on a random {test_fraction:g} of every class, chosen from seed {seed}."
    if imbalance_factor is not None:
        labels = np.array([label for _, label in train])
        kept = long_tail_subset(labels, names, imbalance_factor, largest_class, seed)
        train = [train[i] for i in kept]
    return _from_files(train, test, names, image_size, root, origin)


def _from_files(
    train: Samples, test: Samples, names: List[str], image_size: int, source: str, origin: str
) -> Benchmark:
    """Refuse labels that are no class, and classes without an image."""
    if len(names) < 2:
        raise InputError(f"{source}: a classifier needs at least 2 classes, got {len(names)}")
    splits = []
    for samples, split in ((train, "training"), (test, "test")):
        labels = torch.tensor([label for _, label in samples])
        counts = torch.bincount(labels, minlength=len(names)).tolist()
        problem = None
        if len(counts) > len(names):
            last = len(names) - 1
            problem = f"label {len(counts) - 1} is out of range, since classes are 0 to {last}"
        elif 0 in counts:
            example = names[counts.index(0)]
            problem = f"{counts.count(0)} classes have no image, such as {example!r}"
        if problem:
            raise InputError(f"{source}, {split} split: {problem}")
        splits.append(ImageFiles([path for path, _ in samples], labels, image_size))
    return Benchmark(splits[0], splits[1], names, origin)


def read_list(path: str, root: str) -> Samples:
    """Read a list of the form of ImageNet-LT's: ``path/below/root.jpg label`` in every line.

    Raises:
        InputError: naming the file and the line.
    """
    samples: Samples = []
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = f.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        match = re.fullmatch(r"(.*\S)\s+([0-9]+)", line)
        if match:
            file = os.path.join(root, match[1])
            if (".." in file or os.path.isabs(match[1])) and leads_out(root, file):
                raise InputError(
                    f"{path}, line {number}: {match[1]} leads out of the root {root}: if you trust "
                    "the list, give a root that holds all of its files"
                )
            samples.append((file, int(match[2])))
        elif line:
            raise InputError(
                f"{path}, line {number}: expected `relative/path.jpg label` with a label from 0, "
                f"got {line!r}"
            )
    if not samples:
        raise InputError(f"{path} lists no image")
    return samples


def list_benchmark(train_list: str, test_list: str, root: str, image_size: int) -> Benchmark:
    """ImageNet-LT, Places-LT and others that come as lists of files, long-tailed already.

    For the lists see :func:`read_list`. Classes are those of the training list.

    Raises:
        InputError: a file is missing, a line is broken, or the lists differ in their classes.
    """
    train, test = read_list(train_list, root), read_list(test_list, root)
    names = [str(i) for i in range(max(label for _, label in train) + 1)]
    source = f"{train_list} and {test_list}"
    return _from_files(train, test, names, image_size, source, "The lists' splits.")
