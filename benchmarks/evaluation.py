#!/usr/bin/env python
"""Time and peak memory of LVIS evaluation: Detectron2's ``LVISEvaluator`` with lvis-api, and ours.

Both start from what a model's outputs have become during inference, masks as RLE, and end with the
metrics and the results file written. Each measurement is a process of its own; memory is that of
the whole process, with PyTorch and Detectron2 loaded.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator
from detectron2.structures import Boxes, Instances
from timing import HEADER, print_row

from tde_det.evaluation import LongTailEvaluator
from tde_det.evaluation.unfinished import Unfinished

HEIGHT, WIDTH = 480, 640
NUM_CATEGORIES = 1203
DETECTIONS = 300  # per image


def polygon(rng, box):
    """A closed outline with 12 corners within a box."""
    x, y, w, h = box
    angles = np.arange(12) * (np.pi / 6)
    radius = rng.uniform(0.35, 0.5, 12)
    outline = [x + w / 2 + w * radius * np.cos(angles), y + h / 2 + h * radius * np.sin(angles)]
    return np.stack(outline, 1).ravel().tolist()


def random_boxes(rng, count):
    size = np.exp(rng.uniform(np.log(10), np.log(250), (count, 2)))
    corner = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size)
    return np.concatenate([corner, size], axis=1)


def generate(folder, num_images, seed=0):
    """Write annotations, and detections of which a part are near them."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, NUM_CATEGORIES + 1)  # a long tail
    weights /= weights.sum()
    images, annotations, columns, counts = [], [], [], []
    for image_id in range(1, num_images + 1):
        labels = 1 + rng.choice(NUM_CATEGORIES, rng.integers(1, 25), p=weights)
        boxes = random_boxes(rng, len(labels))
        for label, box in zip(labels.tolist(), boxes.tolist()):
            shape = polygon(rng, box)
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image_id, "category_id": label},
                    **{"bbox": box, "area": box[2] * box[3] * 0.7, "segmentation": [shape]},
                }
            )
        images.append(
            {
                **{"id": image_id, "height": HEIGHT, "width": WIDTH},
                "file_name": f"{image_id:012}.jpg",
                "neg_category_ids": (1 + rng.choice(NUM_CATEGORIES, 10)).tolist(),
                "not_exhaustive_category_ids": labels[:1].tolist(),
            }
        )
        found = random_boxes(rng, DETECTIONS)
        classes = rng.choice(NUM_CATEGORIES, DETECTIONS, p=weights)
        near = rng.integers(0, len(labels), DETECTIONS // 2)
        found[: len(near)] = boxes[near] * rng.uniform(0.9, 1.1, (len(near), 4))
        classes[: len(near)] = labels[near] - 1
        columns.append(np.column_stack([found, np.round(rng.random(DETECTIONS), 4), classes]))
        shapes = [polygon(rng, box) for box in found]
        counts += [rle["counts"] for rle in mask_util.frPyObjects(shapes, HEIGHT, WIDTH)]
    categories = [
        {"id": i + 1, "name": f"c{i}", "frequency": "fcr"[min(2, i // 400)], "image_count": 1}
        for i in range(NUM_CATEGORIES)
    ]
    with open(os.path.join(folder, "annotations.json"), "w") as f:
        json.dump({"images": images, "annotations": annotations, "categories": categories}, f)
    np.save(os.path.join(folder, "detections.npy"), np.stack(columns).astype(np.float32))
    with open(os.path.join(folder, "masks.txt"), "wb") as f:
        f.write(b"\n".join(counts))


def outputs(folder, task):
    """Image id, boxes, scores, classes and RLEs of one image after the other."""
    table = np.load(os.path.join(folder, "detections.npy"), mmap_mode="r")
    with open(os.path.join(folder, "masks.txt")) as lines:
        for i, columns in enumerate(table):
            rles = None
            if task == "segm":
                rles = [
                    {"size": [HEIGHT, WIDTH], "counts": next(lines).rstrip("\n")} for _ in columns
                ]
            yield i + 1, columns[:, :4], columns[:, 4], columns[:, 5].astype(int), rles


def stock_evaluator(folder, task):
    """Detectron2's, holding what its ``process`` makes of outputs."""
    np.float = float  # lvis-api needs it
    evaluator = LVISEvaluator("benchmark", (task,), output_dir=folder)
    evaluator.reset()
    for image_id, boxes, scores, classes, rles in outputs(folder, task):
        rows = [
            {"image_id": image_id, "category_id": c, "bbox": b, "score": s}
            for b, s, c in zip(boxes.tolist(), scores.tolist(), classes.tolist())
        ]
        for row, rle in zip(rows, rles or []):
            row["segmentation"] = rle
        evaluator._predictions.append({"image_id": image_id, "instances": rows})
    return evaluator


def our_evaluator(folder, task, backend):
    evaluator = LongTailEvaluator("benchmark", (task,), folder, backend)
    num_images = len(np.load(os.path.join(folder, "detections.npy"), mmap_mode="r"))
    unfinished = tempfile.mkdtemp(dir=folder)
    evaluator.keep_in(Unfinished(unfinished, "benchmark", num_images))
    for image_id, boxes, scores, classes, rles in outputs(folder, task):
        instances = Instances((HEIGHT, WIDTH))
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        instances.pred_boxes = Boxes(torch.from_numpy(corners))
        instances.scores = torch.from_numpy(np.array(scores))
        instances.pred_classes = torch.from_numpy(classes)
        if rles:
            instances.pred_masks_rle = rles
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator


def measure_here(folder, kind, task):
    """Seconds, peak MiB and AP of one evaluation in this process."""
    logging.disable(logging.CRITICAL)
    MetadataCatalog.get("benchmark").set(
        json_file=os.path.join(folder, "annotations.json"),
        thing_classes=["c"] * NUM_CATEGORIES,
        evaluator_type="lvis",
    )
    evaluator = (
        stock_evaluator(folder, task) if kind == "stock" else our_evaluator(folder, task, kind)
    )
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        ap = evaluator.evaluate()[task]["AP"]
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, ap


def measure(folder, kind, task):
    """Seconds, MiB and AP of an evaluation in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", folder, kind, task]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def compare(folder, item, kinds, task, repeats):
    """Print medians of runs in turn, of the first of the kinds against each of the others."""
    runs = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            runs[kind].append(measure(folder, kind, task))
    stock, *others = kinds
    for kind in others:
        for run, other in zip(runs[stock], runs[kind]):
            assert run[2] == other[2] or run[2] != run[2] or abs(run[2] - other[2]) < 1e-9, runs
        for i, (name, unit) in enumerate((("time", "s"), ("peak memory", "MiB"))):
            columns = [[run[i] for run in runs[k]] for k in (stock, kind)]
            label = f"{item}, {kind}: {name}" if len(others) > 1 else f"{item}: {name}"
            print_row(label, *columns, unit)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure_here(*args.child)))
        return
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, args.images)
        for task in ("bbox", "segm"):
            item = f"{task} AP of {args.images:,} images × {DETECTIONS}"
            compare(folder, item, ("stock", "hotcoco", "lvis"), task, args.repeats)


if __name__ == "__main__":
    main()
