"""Build mini_lvis: a small data set with LVIS's long tail, from a seed and the bundled cutouts.

Class frequencies follow the image counts of LVIS v1: with 1,203 classes they are those counts, with
fewer they are the counts' quantiles, so rare, common and frequent classes keep LVIS's proportion.
"""

import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from tqdm import tqdm

from ...errors import InputError
from ..lvis_json import frequency_of
from .cutouts import load_cutouts
from .scenes import compose_scene

# Classes per picture on average, when the number of pictures is left to us.
CLASSES_PER_IMAGE = 5
# Pictures of every class in the validation split, when its size is left to us.
VAL_IMAGES_PER_CLASS = 30
MAX_NEGATIVES = 24


class Settings(NamedTuple):
    """What a mini_lvis data set depends on; two builds with equal settings are byte-identical."""

    num_classes: int = 60
    image_size: int = 128
    train_images: Optional[int] = None  # None: as many as the class frequencies need
    val_images: Optional[int] = None
    seed: int = 0


class Scene(NamedTuple):
    """One picture to draw: its file, the classes of its objects, and its random stream."""

    path: str
    classes: List[int]
    image_size: int
    stream: Tuple[int, ...]


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


def _draw(scene: Scene) -> List[Dict]:
    """Draw and save one picture; return its annotations without ids, in drawing order."""
    rng = np.random.default_rng(scene.stream)
    # The second object of a class brings in LVIS's crowds.
    classes = [c for c in scene.classes for _ in range(rng.geometric(0.8))]
    rng.shuffle(classes)
    image, masks = compose_scene(rng, [_CUTOUTS[c] for c in classes], scene.image_size)
    cv2.imwrite(scene.path, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    annotations = []
    for label, mask in zip(classes, masks):
        rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
        annotations.append(
            {
                "category_id": label + 1,
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return annotations


_CUTOUTS: List[np.ndarray] = []


def _start_worker(order: List[int]) -> None:
    cv2.setNumThreads(1)
    cutouts = load_cutouts()[1]
    _CUTOUTS[:] = [cutouts[i] for i in order]


def _federate(rng: np.random.Generator, image: Dict, annotations: List[Dict], categories: int):
    """LVIS's federated fields: verified absences, and classes annotated only in part.

    Returns:
        the annotations that remain; those taken out belong to a not-exhaustive class.
    """
    labels = [a["category_id"] for a in annotations]
    absent = np.setdiff1d(np.arange(1, categories + 1), labels)
    negatives = rng.choice(absent, min(len(absent) // 3, MAX_NEGATIVES), replace=False)
    image["neg_category_ids"] = sorted(negatives.tolist())
    image["not_exhaustive_category_ids"] = []
    crowds = [c for c in sorted(set(labels)) if labels.count(c) > 1]
    if crowds and rng.random() < 0.3:
        crowd = int(rng.choice(crowds))
        image["not_exhaustive_category_ids"] = [crowd]
        annotations.remove(next(a for a in reversed(annotations) if a["category_id"] == crowd))
    return annotations


def build_mini_lvis(root: str, settings: Settings) -> None:
    """Draw both splits and write ``mini_lvis_{train,val}.json`` below ``root``.

    A data set with the same settings is left alone; an unfinished one is never left behind.

    Raises:
        InputError: settings no data set can have, or ``root`` holds something else.
    """
    names, _ = load_cutouts()
    if not 1 <= settings.num_classes <= len(names):
        raise InputError(f"num_classes must be in [1, {len(names)}], got {settings.num_classes}")
    if settings.image_size < 64:
        raise InputError(f"image_size must be at least 64 pixels, got {settings.image_size}")
    for key in ("train_images", "val_images"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise InputError(f"{key} must be at least 1, got {value}")
    if settings.seed < 0:
        raise InputError(f"seed must be at least 0, got {settings.seed}")
    target = Path(root)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if _settings_of(target) == settings:
            print(f"{target} is up to date")
            return
        raise InputError(
            f"{target} exists and was not built with {settings}; remove it or choose another folder"
        )

    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(settings.num_classes).tolist()  # which cutout gets which frequency
    true_counts = image_counts(settings.num_classes)
    num_train = settings.train_images or int(np.ceil(true_counts.sum() / CLASSES_PER_IMAGE))
    # Small custom sets cannot hold LVIS's counts: shrink them alike, keeping every class.
    capacity = num_train * max(CLASSES_PER_IMAGE, settings.image_size / 16)
    counts = np.maximum(
        1, true_counts * min(1, capacity / true_counts.sum(), num_train / true_counts.max())
    )
    counts = counts.round().astype(int)
    num_val = settings.val_images or int(
        np.ceil(settings.num_classes * VAL_IMAGES_PER_CLASS / CLASSES_PER_IMAGE)
    )
    val_per_class = max(1, min(num_val, num_val * CLASSES_PER_IMAGE // settings.num_classes))
    val_counts = np.full(settings.num_classes, val_per_class)

    splits = {"train": (counts, num_train), "val": (val_counts, num_val)}
    assigned = {k: assign_classes(rng, *split) for k, split in splits.items()}
    room = (settings.image_size // 16) ** 2
    for split, images_classes in assigned.items():
        busiest = max(map(len, images_classes))
        if busiest > room:
            raise InputError(
                f"{len(images_classes)} {split} images of {settings.image_size} pixels would show "
                f"up to {busiest} classes each, where {room} fit: "
                f"raise {split}_images or image_size"
            )

    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    scenes = {}
    for number, split in enumerate(splits):
        (unfinished / split).mkdir(parents=True)
        scenes[split] = [
            Scene(
                str(unfinished / split / f"{i + 1:06d}.jpg"),
                classes,
                settings.image_size,
                (settings.seed, number, i),
            )
            for i, classes in enumerate(assigned[split])
        ]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _start_worker, (order,)) as pool:
        drawn = {}
        for split, split_scenes in scenes.items():
            work = pool.imap(_draw, split_scenes, chunksize=16)
            drawn[split] = list(tqdm(work, f"mini_lvis {split}", len(split_scenes), unit="image"))

    info = {"description": "mini_lvis", "settings": settings._asdict()}
    for number, split in enumerate(splits):
        images: List[Dict] = []
        annotations: List[Dict] = []
        for i, image_annotations in enumerate(drawn[split]):
            image = {"id": i + 1, "file_name": f"{split}/{i + 1:06d}.jpg"}
            image["width"] = image["height"] = settings.image_size
            stream = np.random.default_rng((settings.seed, number, i, 1))
            images.append(image)
            kept = _federate(stream, image, image_annotations, settings.num_classes)
            for annotation in kept:
                annotation.update(id=len(annotations) + 1, image_id=i + 1)
                annotations.append(annotation)
        if split == "train":
            instances = np.bincount(
                [a["category_id"] for a in annotations], minlength=len(order) + 1
            )
            categories = [
                {
                    "id": i + 1,
                    "name": names[order[i]],
                    "synonyms": [names[order[i]]],
                    "synset": f"{names[order[i]]}.n.01",
                    "def": "",
                    "frequency": frequency_of(int(true_counts[i])),
                    "image_count": int(counts[i]),
                    "instance_count": int(instances[i + 1]),
                }
                for i in range(settings.num_classes)
            ]
        content = {
            "info": info,
            "licenses": [],
            "categories": categories,
            "images": images,
            "annotations": annotations,
        }
        (unfinished / f"mini_lvis_{split}.json").write_text(json.dumps(content))
    if target.exists():
        target.rmdir()  # empty, or we would not be here
    unfinished.rename(target)


def _settings_of(root: Path) -> Optional[Settings]:
    """The settings a finished data set was built with, or None."""
    try:
        info = json.loads((root / "mini_lvis_val.json").read_text())["info"]
        return Settings(**info["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
