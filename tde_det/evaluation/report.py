"""From annotations and detections to tables and files, for training and the command line alike."""

import csv
import json
import logging
import math
import os
from collections import Counter
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np
from tabulate import tabulate

from ..data.lvis_json import count_images
from ..errors import InputError
from .detections import Detections
from .lvis_eval import METRICS, encode_masks, evaluate_lvis, for_task

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
        ground_truth: from :func:`tde_det.data.lvis_json.read_lvis_json`.
        categories: its categories from :func:`complete_categories`.
        detections: what to evaluate.
        tasks: see :func:`evaluate_lvis`.
        metrics_file: json to write, or None; ``per_category_ap.csv`` goes into its folder.
        backend: see :func:`evaluate_lvis`.
        fixed: evaluate AP-fixed too, as ``bbox_fixed`` and so on.

    Returns:
        metrics per task, in percent.

    Raises:
        InputError: see :func:`evaluate_lvis`; or the file cannot be written.
    """
    for task in tasks:  # find out now, not after the first of them
        for_task(detections, {image["id"]: image for image in ground_truth["images"]}, task)
    unknown = set(detections.category_ids.tolist()) - {category["id"] for category in categories}
    if unknown:
        logger.warning(
            "%d categories of the results, such as %s, are not listed in the annotations: their "
            "detections do not count",
            len(unknown),
            min(unknown, key=str),
        )
    table = _check_writable(metrics_file) if metrics_file else None
    results, per_category = {}, {}
    encoded = encode_masks(ground_truth) if {*tasks} - {"bbox"} else ground_truth
    for task in tasks:
        for suffix in ("", "_fixed") if fixed else ("",):
            results[task + suffix], per_category[task + suffix] = evaluate_lvis(
                ground_truth if task == "bbox" else encoded,
                categories,
                detections,
                task,
                backend,
                fixed=suffix != "",
            )
    if metrics_file:
        with open(metrics_file, "w") as f:
            json.dump(
                {
                    task: {m: None if math.isnan(v) else v for m, v in metrics.items()}
                    for task, metrics in results.items()
                },
                f,
            )
    if table:
        _write_per_category(table, ground_truth, categories, per_category)
    return results


def _check_writable(metrics_file: str) -> str:
    """Create a file's folder and try to write there, before minutes are spent on what to write.

    Returns:
        where the table of categories goes.
    """
    table = os.path.join(os.path.dirname(metrics_file), "per_category_ap.csv")
    if os.path.abspath(table) == os.path.abspath(metrics_file):
        raise InputError(f"{metrics_file} is where the AP of every category goes: name another")
    for path in (metrics_file, table):
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            existed = os.path.lexists(path)
            with open(path, "a"):
                pass
            if not existed:
                os.remove(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
    return table


def _write_per_category(
    path: str,
    ground_truth: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    per_category: Dict[str, np.ndarray],
) -> None:
    instances = Counter(annotation["category_id"] for annotation in ground_truth["annotations"])
    images = count_images(ground_truth)
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        columns = ["category_id", "name", "frequency", "train_images", "instances", "images"]
        writer.writerow([*columns, *(f"AP_{task}" for task in per_category)])
        for i, category in enumerate(categories):
            aps = [ap[i] for ap in per_category.values()]
            writer.writerow(
                [
                    *(category[key] for key in ("id", "name", "frequency", "image_count")),
                    instances[category["id"]],
                    images[category["id"]],
                    *("" if math.isnan(ap) else f"{ap:.6f}" for ap in aps),
                ]
            )
