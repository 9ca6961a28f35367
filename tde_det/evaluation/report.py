"""Evaluate detections and write the metrics, for training and for the command line."""

import csv
import json
import logging
import math
import os
from collections import Counter
from typing import Any, Dict, Mapping, Optional, Sequence

from tabulate import tabulate

from ..data.categories import count_images
from ..errors import InputError
from ..output_files import check_writable
from .detections import Detections
from .lvis_eval import METRICS, encode_annotations, evaluate_lvis, select_for_task

logger = logging.getLogger(__name__)


def format_table(
    rows: Mapping[str, Mapping[str, Optional[float]]], metrics: Sequence[str] = METRICS
) -> str:
    """One line per row name, one column per metric, in percent; empty for None or absence."""
    lines = [[name, *(values.get(m) for m in metrics)] for name, values in rows.items()]
    return tabulate(lines, headers=["", *metrics], floatfmt=".2f", tablefmt="pipe")


def report_lvis(
    ground_truth: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    detections: Detections,
    tasks: Sequence[str],
    metrics_file: Optional[str] = None,
    backend: str = "hotcoco",
    fixed: bool = False,
) -> Dict[str, Dict[str, float]]:
    """Evaluate tasks and write the metrics and, beside them, the AP of every category.

    Args:
        ground_truth, categories, backend: see :func:`evaluate_lvis`.
        detections: what to evaluate.
        tasks: see :func:`evaluate_lvis`.
        metrics_file: json to write, or None; ``per_category_ap.csv`` goes into its folder.
        fixed: evaluate AP-fixed too, as ``bbox_fixed`` and so on.

    Returns:
        metrics per task, in percent.

    Raises:
        InputError: see :func:`evaluate_lvis`; or the file cannot be written.
    """
    for task in tasks:  # find out now, not after the first of them
        select_for_task(detections, ground_truth, task)
    unknown = set(detections.category_ids.tolist()) - {category["id"] for category in categories}
    if unknown:
        logger.warning(
            "%d categories of the results, such as %s, are not listed in the annotations: their "
            "detections do not count",
            len(unknown),
            min(unknown, key=str),
        )
    table = os.path.join(os.path.dirname(metrics_file or ""), "per_category_ap.csv")
    if metrics_file:
        if os.path.abspath(table) == os.path.abspath(metrics_file):
            raise InputError(f"{metrics_file} is where the AP of every category goes: name another")
        check_writable(metrics_file)
        check_writable(table)
    results, per_category = {}, {}
    # Encoded once for all tasks with masks.
    encoded = encode_annotations(ground_truth) if {*tasks} - {"bbox"} else ground_truth
    for task in tasks:
        annotations = ground_truth if task == "bbox" else encoded
        for name, is_fixed in ((task, False), (f"{task}_fixed", True))[: 1 + fixed]:
            results[name], per_category[name] = evaluate_lvis(
                annotations, categories, detections, task, backend, is_fixed
            )
    if metrics_file:
        numbers = {
            task: {name: None if math.isnan(value) else value for name, value in metrics.items()}
            for task, metrics in results.items()
        }
        with open(metrics_file, "w") as f:
            json.dump(numbers, f)
        instances = Counter(annotation["category_id"] for annotation in ground_truth["annotations"])
        images = count_images(ground_truth)
        with open(table, "w", newline="") as f:
            writer = csv.writer(f)
            columns = ["category_id", "name", "frequency", "train_images", "instances", "images"]
            writer.writerow([*columns, *(f"AP_{task}" for task in per_category)])
            for category, *aps in zip(categories, *per_category.values()):
                row = [category[key] for key in ("id", "name", "frequency", "image_count")]
                row += [instances[category["id"]], images[category["id"]]]
                writer.writerow([*row, *("" if math.isnan(ap) else f"{ap:.6f}" for ap in aps)])
    return results
