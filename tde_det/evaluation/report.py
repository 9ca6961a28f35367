"""Evaluate detections and write the metrics, for training and for the command line."""

import csv
import json
import logging
import math
import os
from collections import Counter
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from tabulate import tabulate

from ..data.categories import count_images
from ..errors import InputError
from ..output_files import check_writable
from .calibration_error import (
    BIN_COLUMNS,
    ECE_METRICS,
    calibration_error,
    check_probabilities,
    reliability,
)
from .detections import Detections
from .lvis_eval import METRICS, encode_annotations, evaluate_lvis, lvis_matches, select_for_task
from .pooled import pooled_ap

logger = logging.getLogger(__name__)

EXTRA = ("fixed", "pool", "calibration")  # what report_lvis measures if it is asked to


def check_extra(extra: Sequence[str]) -> None:
    """Check the value of ``TEST.LVIS_EXTRA``.

    Raises:
        InputError: something in it is not in :data:`EXTRA`.
    """
    if not isinstance(extra, (list, tuple)) or any(name not in EXTRA for name in extra):
        raise InputError(f"TEST.LVIS_EXTRA is {extra!r}; it is a list of some of {list(EXTRA)}")


def format_table(
    rows: Mapping[str, Mapping[str, Optional[float]]], metrics: Sequence[str] = ()
) -> str:
    """One line per row name, one column per metric, in percent; empty for None or absence.

    The columns are those of ``metrics``, by default :data:`METRICS` and the calibration errors, if
    there are any.
    """
    measured = {metric for values in rows.values() for metric in values}
    metrics = metrics or [*METRICS, *(metric for metric in ECE_METRICS if metric in measured)]
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
    pool: bool = False,
    calibration: bool = False,
) -> Dict[str, Dict[str, float]]:
    """Evaluate tasks and write the metrics and, beside them, the AP of every category.

    Args:
        ground_truth, categories, backend: see :func:`evaluate_lvis`.
        detections: what to evaluate.
        tasks: see :func:`evaluate_lvis`.
        metrics_file: json to write, or None; ``per_category_ap.csv`` goes into its folder, with
            ``calibration`` also ``reliability.csv``, the bins of the calibration errors.
        fixed: evaluate AP-fixed too, as ``bbox_fixed`` and so on.
        pool: evaluate AP-pool too, as ``bbox_pool`` and so on; see :func:`.pooled.pooled_ap`.
        calibration: measure calibration errors too, as ``ECE``, ``ECEr``, ``ECEc`` and ``ECEf`` of
            every task; see calibration_error.py.

    Returns:
        metrics per task, in percent.

    Raises:
        InputError: see :func:`evaluate_lvis`; or a file cannot be written; or with ``calibration``,
            a score is outside [0, 1].
    """
    if calibration:
        check_probabilities(detections.scores)
    for task in tasks:  # find out now, not after the first of them
        select_for_task(detections, ground_truth, task)
    found = set(np.unique(detections.category_ids).tolist())
    unknown = found - {category["id"] for category in categories}
    if unknown:
        logger.warning(
            "%d categories of the results, such as %s, are not listed in the annotations: their "
            "detections do not count",
            len(unknown),
            min(unknown, key=str),
        )
    files = _output_files(metrics_file, calibration) if metrics_file else []
    for path in files:
        check_writable(path)
    by_id = sorted(categories, key=lambda category: category["id"])
    frequencies = [category["frequency"] for category in by_id]
    results: Dict[str, Dict[str, float]] = {}
    per_category, bins = {}, {}
    # Encoded once for all tasks with masks.
    encoded = encode_annotations(ground_truth) if {*tasks} - {"bbox"} else ground_truth
    for task in tasks:
        annotations = {**(ground_truth if task == "bbox" else encoded), "categories": by_id}
        for name, is_fixed in ((task, False), (f"{task}_fixed", True))[: 1 + fixed]:
            results[name], per_category[name] = evaluate_lvis(
                annotations, categories, detections, task, backend, is_fixed
            )
        if pool:
            matches = lvis_matches(annotations, detections, task, backend, fixed=True)
            results[f"{task}_pool"] = pooled_ap(matches, frequencies)
        if calibration:
            matches = lvis_matches(annotations, detections, task, backend)
            bins[task] = reliability(matches, frequencies)
            results[task].update({k: calibration_error(table) for k, table in bins[task].items()})
    if files:
        _write_metrics(files[0], results)
        _write_per_category(files[1], ground_truth, categories, per_category)
    if files[2:]:
        _write_bins(files[2], bins)
    return results


def _output_files(metrics_file: str, calibration: bool) -> List[str]:
    """The metrics, and the files that go beside them."""
    folder = os.path.dirname(metrics_file)
    others = ["per_category_ap.csv", "reliability.csv"][: 1 + calibration]
    files = [metrics_file, *(os.path.join(folder, name) for name in others)]
    if os.path.abspath(metrics_file) in map(os.path.abspath, files[1:]):
        raise InputError(f"{metrics_file} is what goes beside the metrics: name another")
    return files


def _write_metrics(path: str, results: Mapping[str, Mapping[str, float]]) -> None:
    numbers = {
        task: {name: None if math.isnan(value) else value for name, value in metrics.items()}
        for task, metrics in results.items()
    }
    with open(path, "w") as f:
        json.dump(numbers, f)


def _write_per_category(
    path: str,
    ground_truth: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    per_category: Mapping[str, np.ndarray],
) -> None:
    instances = Counter(annotation["category_id"] for annotation in ground_truth["annotations"])
    images = count_images(ground_truth)
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        columns = ["category_id", "name", "frequency", "train_images", "instances", "images"]
        writer.writerow([*columns, *(f"AP_{task}" for task in per_category)])
        for category, *aps in zip(categories, *per_category.values()):
            row = [category[key] for key in ("id", "name", "frequency", "image_count")]
            row += [instances[category["id"]], images[category["id"]]]
            writer.writerow([*row, *("" if math.isnan(ap) else f"{ap:.6f}" for ap in aps)])


def _write_bins(path: str, bins: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["task", "metric", *BIN_COLUMNS])
        for task, tables in bins.items():
            for metric, table in tables.items():
                for low, count, *means in table.tolist():
                    cells = ["" if math.isnan(mean) else f"{mean:.6f}" for mean in means]
                    writer.writerow([task, metric, f"{low:.6f}", int(count), *cells])
