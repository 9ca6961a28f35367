#!/usr/bin/env python
"""Write a made-up json with the keys, the size and the long tail of LVIS v1's training set.

The same arguments give the same bytes. No image files are made.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, Iterator, List

import msgspec
import numpy as np
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT

from tde_det.cli import exit_on_input_error
from tde_det.data.categories import frequency_of
from tde_det.errors import InputError

MEAN_POINTS = 46  # of a polygon: gives LVIS v1's 1.1 GB
MULTIPLE = 0.14  # share of annotations with a second polygon
EMPTY = 0.008  # share of images without annotations
CHUNK = 20_000  # annotations held in memory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_170, help="default: LVIS v1's")
    parser.add_argument("--annotations", type=int, default=1_270_141, help="default: LVIS v1's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the json")
    return parser.parse_args()


def polygons(rng: np.random.Generator, widths: np.ndarray, heights: np.ndarray) -> Dict[str, Any]:
    """One star-shaped polygon per entry of ``widths``, inside an image of that size.

    Returns:
        ``points`` (P, 2) of all polygons together, ``ends`` (N,) of each polygon in it, ``box``
        (N, 4) as x, y, width, height, and ``area`` (N,), all rounded to hundredths of a pixel.
    """
    count = np.maximum(3, rng.gamma(1.2, MEAN_POINTS / 1.2, len(widths)).astype(int))
    ends = np.cumsum(count)
    starts = ends - count
    owner = np.repeat(np.arange(len(count)), count)
    size = np.stack([widths, heights], axis=1)
    radius = size * np.clip(rng.lognormal(-2.5, 0.9, size.shape), 0.01, 0.5)
    centre = radius + rng.random(size.shape) * (size - 2 * radius)
    angle = 2 * np.pi * (np.arange(ends[-1]) - starts[owner] + rng.random(ends[-1])) / count[owner]
    reach = rng.uniform(0.6, 1.0, ends[-1])
    points = np.stack([np.cos(angle) * reach, np.sin(angle) * reach], axis=1)
    points = np.round(centre[owner] + radius[owner] * points, 2)
    low = np.minimum.reduceat(points, starts)
    high = np.maximum.reduceat(points, starts)
    after = np.arange(1, len(points) + 1)
    after[ends - 1] = starts
    cross = points[:, 0] * points[after, 1] - points[after, 0] * points[:, 1]
    area = np.abs(np.add.reduceat(cross, starts)) / 2
    box = np.round(np.concatenate([low, high - low], axis=1), 2)
    return {"points": points, "ends": ends, "box": box, "area": np.round(area, 2)}


def annotation_chunks(
    rng: np.random.Generator, images: List[Dict[str, Any]], number: int, category_ids: np.ndarray
) -> Iterator[List[Dict[str, Any]]]:
    """Annotations in LVIS's format, image by image."""
    share = rng.lognormal(0, 0.9, len(images)) * (rng.random(len(images)) >= EMPTY)
    image_of = np.repeat(np.arange(len(images)), rng.multinomial(number, share / share.sum()))
    weights = np.array([c["image_count"] for c in LVIS_CATEGORY_IMAGE_COUNT], float)
    for start in range(0, number, CHUNK):
        owner = image_of[start : start + CHUNK]
        chosen = [images[i] for i in owner]
        parts = 1 + (rng.random(len(owner)) < MULTIPLE)
        shape = np.repeat([(image["width"], image["height"]) for image in chosen], parts, axis=0)
        drawn = polygons(rng, *shape.T)
        categories = rng.choice(category_ids, len(owner), p=weights / weights.sum())
        flat = drawn["points"].reshape(-1).tolist()
        ends = (2 * drawn["ends"]).tolist()
        starts = [0, *ends[:-1]]
        first = (np.cumsum(parts) - parts).tolist()
        chunk = []
        for i, image in enumerate(chosen):
            group = range(first[i], first[i] + parts[i])
            boxes = drawn["box"][group]
            low = boxes[:, :2].min(axis=0)
            high = (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
            chunk.append(
                {
                    "area": round(float(drawn["area"][group].sum()), 2),
                    "id": start + i + 1,
                    "segmentation": [flat[starts[p] : ends[p]] for p in group],
                    "image_id": image["id"],
                    "bbox": np.round(np.concatenate([low, high - low]), 2).tolist(),
                    "category_id": int(categories[i]),
                }
            )
        yield chunk


def make_images(rng: np.random.Generator, number: int, categories: np.ndarray) -> List[Dict]:
    """Images with COCO's ids, urls and usual sizes, in no order."""
    sizes = np.array([(640, 480), (640, 427), (480, 640), (427, 640), (640, 640), (500, 375)])
    ids = rng.choice(max(600_000, 2 * number), number, replace=False) + 1
    images = []
    for image_id, (width, height) in zip(ids.tolist(), rng.choice(sizes, number).tolist()):
        listed = rng.choice(categories, rng.integers(1, 12), replace=False).tolist()
        exhaustive = rng.integers(0, 3)
        images.append(
            {
                "date_captured": "2013-11-14 11:18:45",
                "neg_category_ids": listed[exhaustive:],
                "id": image_id,
                "license": 4,
                "height": height,
                "width": width,
                "flickr_url": f"http://farm9.staticflickr.com/8186/{image_id:010}_z.jpg",
                "coco_url": f"http://images.cocodataset.org/train2017/{image_id:012}.jpg",
                "not_exhaustive_category_ids": listed[:exhaustive],
            }
        )
    return images


def generate(output: Path, num_images: int, num_annotations: int, seed: int = 0) -> None:
    """Write the json, holding one chunk of annotations in memory at a time.

    Raises:
        InputError: there is nothing to write, or no place to write it to.
    """
    if num_images < 1 or num_annotations < 1:
        raise InputError("--images and --annotations must be at least 1")
    rng = np.random.default_rng(seed)
    by_id = sorted(LVIS_CATEGORIES, key=lambda c: c["id"])
    category_ids = np.array([c["id"] for c in by_id])
    images = make_images(rng, num_images, category_ids)
    instances = np.zeros(len(by_id), int)
    pairs = []  # of image and category, once each within a chunk
    encode = msgspec.json.encode
    try:
        with open(output, "wb") as f:
            f.write(b'{"info":' + encode({"description": "generated", "version": "v1.0"}))
            f.write(b',"annotations":')
            opening = b"["
            for chunk in annotation_chunks(rng, images, num_annotations, category_ids):
                f.write(opening + encode(chunk)[1:-1])
                opening = b","
                keys = np.array([(a["image_id"], a["category_id"] - 1) for a in chunk])
                instances += np.bincount(keys[:, 1], minlength=len(by_id))
                pairs.append(np.unique(keys, axis=0))
            f.write(b'],"images":' + encode(images))
            f.write(b',"licenses":' + encode([{"id": 4, "name": "generated", "url": ""}]))
            in_images = np.unique(np.concatenate(pairs), axis=0)[:, 1]
            counts = np.bincount(in_images, minlength=len(by_id)).tolist()
            categories = [
                {
                    **category,
                    "image_count": count,
                    "instance_count": total,
                    "frequency": frequency_of(count),
                }
                for category, count, total in zip(by_id, counts, instances.tolist())
            ]
            f.write(b',"categories":' + encode(categories) + b"}")
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error}") from None


@exit_on_input_error
def main() -> None:
    args = parse_args()
    generate(args.output, args.images, args.annotations, args.seed)
    print(f"{args.output}: {args.output.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
