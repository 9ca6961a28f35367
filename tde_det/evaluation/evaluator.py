"""The Detectron2 evaluator for LVIS and every data set in its format."""

import csv
import itertools
import json
import logging
import math
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from tabulate import tabulate

from ..data.lvis_json import complete_categories, read_lvis_json
from .lvis_eval import METRICS, evaluate_lvis

logger = logging.getLogger(__name__)


def format_table(
    rows: Mapping[str, Mapping[str, Optional[float]]], metrics: Sequence[str] = METRICS
) -> str:
    """One line per row name, one column per metric, in percent; empty for None."""
    lines = [[name, *(values[m] for m in metrics)] for name, values in rows.items()]
    return tabulate(lines, headers=["", *metrics], floatfmt=".2f", tablefmt="pipe")


class LongTailEvaluator(DatasetEvaluator):
    """AP, AP_r, AP_c, AP_f and the rest of LVIS's metrics, for boxes and masks.

    Writes into ``output_dir``:
        lvis_instances_results.json: all detections, in the format of the LVIS challenge.
        metrics.json: the metrics in percent, ``null`` where there is nothing to measure.
        per_category_ap.csv: AP of every category beside its frequency and counts.

    Args:
        dataset_name: registered with a ``json_file``.
        tasks: of ``"bbox"`` and ``"segm"``.
        output_dir: folder for the files above, or None.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str], output_dir: Optional[str] = None):
        self._metadata = MetadataCatalog.get(dataset_name)
        self._tasks = tasks
        self._output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        self._detections: List[Dict[str, Any]] = []

    def process(self, inputs, outputs) -> None:
        for entry, output in zip(inputs, outputs):
            instances = output["instances"].to("cpu")
            self._detections.extend(instances_to_coco_json(instances, entry["image_id"]))

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Metrics per task on the main process, ``{}`` on the others and without annotations."""
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return {}
        ground_truth = read_lvis_json(self._metadata.json_file)
        categories = self._metadata.get("lvis_categories") or complete_categories(ground_truth)
        # The model's contiguous classes become the annotations' category ids.
        detections = [
            {**d, "category_id": categories[d["category_id"]]["id"]}
            for d in itertools.chain.from_iterable(gathered)
        ]
        self._write("lvis_instances_results.json", detections)
        if not ground_truth["annotations"]:
            logger.info("%s has no annotations: nothing to measure", self._metadata.json_file)
            return {}
        if not detections:
            logger.warning("The model detected nothing in %s", self._metadata.json_file)

        results, per_category = {}, {}
        for task in self._tasks:
            results[task], per_category[task] = evaluate_lvis(
                ground_truth, categories, detections, task
            )
        logger.info("LVIS metrics:\n%s", format_table(results))
        self._write(
            "metrics.json",
            {
                task: {m: None if math.isnan(v) else v for m, v in metrics.items()}
                for task, metrics in results.items()
            },
        )
        self._write_per_category(ground_truth, categories, per_category)
        return results

    def _write(self, name: str, content: Any) -> None:
        if self._output_dir:
            os.makedirs(self._output_dir, exist_ok=True)
            with open(os.path.join(self._output_dir, name), "w") as f:
                json.dump(content, f)

    def _write_per_category(
        self,
        ground_truth: Dict[str, Any],
        categories: Sequence[Dict[str, Any]],
        per_category: Dict[str, np.ndarray],
    ) -> None:
        if not self._output_dir:
            return
        instances = {c["id"]: 0 for c in categories}
        for annotation in ground_truth["annotations"]:
            instances[annotation["category_id"]] += 1
        with open(os.path.join(self._output_dir, "per_category_ap.csv"), "w", newline="") as f:
            writer = csv.writer(f)
            columns = ["category_id", "name", "frequency", "train_images", "instances"]
            writer.writerow([*columns, *(f"AP_{task}" for task in per_category)])
            for i, category in enumerate(categories):
                aps = [ap[i] for ap in per_category.values()]
                writer.writerow(
                    [
                        category["id"],
                        category["name"],
                        category["frequency"],
                        category["image_count"],
                        instances[category["id"]],
                        *("" if math.isnan(ap) else f"{ap:.6f}" for ap in aps),
                    ]
                )
