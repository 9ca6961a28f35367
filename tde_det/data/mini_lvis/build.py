"""Build mini_lvis: a small data set with LVIS's long tail, from a seed and the bundled cutouts.

Class frequencies follow the image counts of LVIS v1: with 1,203 classes they are those counts, with
fewer they are the counts' quantiles, so rare, common and frequent classes keep LVIS's proportion.

A class has several drawings. A training object is one of them at random, so a rare class is seen in
some only; validation shows all of them equally often.
"""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from tqdm import tqdm

from ...errors import InputError
from ..categories import frequency_of
from .cutouts import load_cutouts
from .scenes import compose_scene

# Classes per picture on average, when the number of pictures is left to us.
CLASSES_PER_IMAGE = 5
# Pictures of every class in the validation split, when its size is left to us.
VAL_IMAGES_PER_CLASS = 30
MAX_NEGATIVES = 24
VERSION = 2  # of the pictures and files that equal settings give


class Settings(NamedTuple):
    """What a mini_lvis data set depends on; two builds with equal settings are byte-identical."""

    num_classes: int = 60
    image_size: int = 128
    train_images: Optional[int] = None  # None: as many as the class frequencies need
    val_images: Optional[int] = None
    seed: int = 0
    largest_share: Optional[float] = None  # of training objects, of one class; None: LVIS's counts


LOWEST = (1, 64, 1, 1, 0)  # settings
# Objects of a class in a picture of it, unless one class is to have a share: 1 + the failures
# before a success of this probability, which brings in LVIS's crowds.
ALONE = 0.8


def image_counts(num_classes: int) -> np.ndarray:
    """Training images of each class, ascending: quantiles of LVIS v1's ``image_count``."""
    counts = np.sort([c["image_count"] for c in LVIS_CATEGORY_IMAGE_COUNT])
    return counts[((np.arange(num_classes) + 0.5) * len(counts) / num_classes).astype(int)]


def assign_classes(
    rng: np.random.Generator, counts: np.ndarray, num_images: int
) -> List[List[int]]:
    """Spread classes over images so that class i lies in exactly ``counts[i]`` of them."""
    room = rng.uniform(0.5, 1.5, num_images)  # pictures differ in how much they show
    load = np.zeros(num_images)
    images: List[List[int]] = [[] for _ in range(num_images)]
    for i in np.argsort(-counts, kind="stable"):
        # Emptiest first; the jitter keeps frequent classes from always meeting each other.
        for j in np.argsort(load / room + rng.uniform(0, 2, num_images))[: counts[i]]:
            images[j].append(int(i))
            load[j] += 1
    return images


def assign_drawings(
    rng: np.random.Generator, images: List[List[int]], kinds: Sequence[int], in_turn: bool
) -> List[List[int]]:
    """Which of the ``kinds[i]`` drawings shows class i in each of its images.

    Args:
        images: classes of every image.
        in_turn: one after the other, so that each shows equally often, instead of at random.
    """
    following = [int(rng.integers(kind)) for kind in kinds]
    drawings = []
    for classes in images:
        drawings.append([following[i] for i in classes])
        for i in classes:
            following[i] = (following[i] + 1) % kinds[i] if in_turn else int(rng.integers(kinds[i]))
    return drawings


def _draw(
    path: str,
    classes: Sequence[int],
    drawings: Sequence[int],
    order: Sequence[int],
    alone: Sequence[float],
    size: int,
    stream: Tuple[int, ...],
) -> List[Dict[str, Any]]:
    """Draw and save one picture; return its annotations without ids, in drawing order.

    Class i is shown by the cutouts ``order[i]``, first by the given one of its drawings, and
    1 / ``alone[i]`` times on average; ``stream`` is the picture's own random stream.
    """
    rng = np.random.default_rng(stream)
    cutouts = load_cutouts()[1]
    objects = []  # class and drawing
    for i, drawing in zip(classes, drawings):
        objects.append((i, drawing))
        for _ in range(rng.geometric(alone[i]) - 1):
            objects.append((i, int(rng.integers(len(cutouts[order[i]])))))
    rng.shuffle(objects)
    image, masks = compose_scene(rng, [cutouts[order[i]][d] for i, d in objects], size)
    cv2.imwrite(path, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    annotations = []
    for (i, drawing), mask in zip(objects, masks):
        rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "category_id": i + 1,
                "drawing": drawing,
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return annotations


def _federate(
    rng: np.random.Generator, image: Dict, annotations: List[Dict], num_classes: int
) -> None:
    """Set LVIS's federated fields: verified absences, and a class annotated only in part.

    One annotation of that class is taken out.
    """
    labels = [a["category_id"] for a in annotations]
    absent = np.setdiff1d(np.arange(1, num_classes + 1), labels)
    negatives = rng.choice(absent, min(len(absent) // 3, MAX_NEGATIVES), replace=False)
    image["neg_category_ids"] = sorted(negatives.tolist())
    image["not_exhaustive_category_ids"] = []
    crowds = [c for c in sorted(set(labels)) if labels.count(c) > 1]
    if crowds and rng.random() < 0.3:
        crowd = int(rng.choice(crowds))
        image["not_exhaustive_category_ids"] = [crowd]
        annotations.remove(next(a for a in reversed(annotations) if a["category_id"] == crowd))


def _plan(
    rng: np.random.Generator, settings: Settings, true_counts: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, Dict[str, List[List[int]]]]:
    """Training images of each class, ``alone`` of each, and the classes of all pictures."""
    num_classes, size, train_images, val_images, _, share = settings
    num_train = train_images or int(np.ceil(true_counts.sum() / CLASSES_PER_IMAGE))
    # Small custom sets cannot hold LVIS's counts: shrink them alike, keeping every class.
    capacity = num_train * max(CLASSES_PER_IMAGE, size / 16)
    shrink = min(1, capacity / true_counts.sum(), num_train / true_counts.max())
    counts = np.maximum(1, true_counts * shrink).round().astype(int)
    alone = np.full(num_classes, ALONE)
    if share is not None:  # in as many pictures as are needed, and if all are, often in each
        objects = share / (1 - share) * counts[:-1].sum() / ALONE
        counts[-1] = np.clip(objects * ALONE, 1, num_train)
        alone[-1] = min(ALONE, counts[-1] / objects)
    num_val = val_images or int(np.ceil(num_classes * VAL_IMAGES_PER_CLASS / CLASSES_PER_IMAGE))
    val_per_class = max(1, min(num_val, num_val * CLASSES_PER_IMAGE // num_classes))
    shown = {
        "train": assign_classes(rng, counts, num_train),
        "val": assign_classes(rng, np.full(num_classes, val_per_class), num_val),
    }
    room = (size // 16) ** 2
    for split, images in shown.items():
        busiest = max(map(len, images))
        if busiest > room:
            raise InputError(
                f"{len(images)} {split} images of {size} pixels would show up to {busiest} "
                f"classes each, where {room} fit: raise {split}_images or image_size"
            )
    return counts, alone, shown


def build_mini_lvis(root: str, settings: Settings) -> None:
    """Draw both splits and write ``mini_lvis_{train,val}.json`` below ``root``.

    A data set with the same settings is left alone; an unfinished one is never left behind.

    Raises:
        InputError: settings no data set can have, or ``root`` holds something else.
    """
    num_classes, size, _, _, seed, share = settings
    names, cutouts = load_cutouts()
    for key, value, lowest in zip(Settings._fields, settings, LOWEST):
        if value is not None and value < lowest:
            raise InputError(f"{key} must be at least {lowest}, got {value}")
    if num_classes > len(names):
        raise InputError(f"num_classes must be at most {len(names)}, got {num_classes}")
    if share is not None and not 0 < share < 1:
        raise InputError(f"largest_share must be in (0, 1), got {share}")
    target = Path(root)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if _settings_of(target) == settings:
            print(f"{target} is up to date")
            return
        raise InputError(
            f"{target} exists and was not built with {settings} by mini_lvis version {VERSION}; "
            "remove it or choose another folder"
        )

    rng = np.random.default_rng(seed)
    order = rng.permutation(num_classes).tolist()  # which cutout gets which frequency
    true_counts = image_counts(num_classes)
    counts, alone, shown = _plan(rng, settings, true_counts)
    names = [names[i] for i in order]
    kinds = [len(cutouts[i]) for i in order]
    categories: List[Dict[str, Any]] = [
        {
            "id": i + 1,
            "name": names[i],
            "synonyms": [names[i]],
            "synset": f"{names[i]}.n.01",
            "def": "",
            "frequency": frequency_of(int(true_counts[i])),
            "image_count": int(counts[i]),
            "instance_count": 0,  # set below
        }
        for i in range(num_classes)
    ]
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    info = {"description": "mini_lvis", "version": VERSION, "settings": settings._asdict()}
    content: Dict[str, Any] = {"info": info, "licenses": [], "categories": categories}
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), cv2.setNumThreads, (1,))
    with pool:
        for number, (split, classes) in enumerate(shown.items()):
            (unfinished / split).mkdir(parents=True)
            files = [f"{split}/{i + 1:06d}.jpg" for i in range(len(classes))]
            paths = [str(unfinished / file) for file in files]
            streams = [(seed, number, i) for i in range(len(classes))]
            drawings = assign_drawings(rng, classes, kinds, in_turn=split == "val")
            # In validation no class has more objects than others.
            chances = (alone if split == "train" else np.full(num_classes, ALONE)).tolist()
            work = (paths, classes, drawings, repeat(order), repeat(chances), repeat(size), streams)
            drawn = pool.map(_draw, *work, chunksize=16)
            images: List[Dict[str, Any]] = []
            annotations: List[Dict[str, Any]] = []
            for i, found in enumerate(tqdm(drawn, f"mini_lvis {split}", len(files), unit="image")):
                image = {"id": i + 1, "file_name": files[i], "width": size, "height": size}
                images.append(image)
                _federate(np.random.default_rng((seed, number, i, 1)), image, found, num_classes)
                for annotation in found:
                    annotation.update(id=len(annotations) + 1, image_id=i + 1)
                    annotations.append(annotation)
            if split == "train":
                for annotation in annotations:
                    categories[annotation["category_id"] - 1]["instance_count"] += 1
            content.update(images=images, annotations=annotations)
            (unfinished / f"mini_lvis_{split}.json").write_text(json.dumps(content))
    if target.exists():
        target.rmdir()  # empty, or we would not be here
    unfinished.rename(target)


def _settings_of(root: Path) -> Optional[Settings]:
    """The settings a finished data set of this version was built with, or None."""
    try:
        info = json.loads((root / "mini_lvis_val.json").read_text())["info"]
        return Settings(**info["settings"]) if info.get("version") == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
