"""The Detectron2 evaluator for LVIS and every data set in its format."""

import dataclasses
import logging
import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.categories import complete_categories
from ..data.lvis_json import read_lvis_json
from .detections import Detections
from .lvis_eval import check_backend
from .report import check_extra, format_table, report_lvis
from .results_file import write_detections
from .unfinished import Unfinished

logger = logging.getLogger(__name__)


class LongTailEvaluator(DatasetEvaluator):
    """AP, AP_r, AP_c, AP_f and the rest of LVIS's metrics, for boxes and masks.

    Writes into ``output_dir``:
        lvis_instances_results.json: all detections, in the format of the LVIS challenge.
        metrics.json: the metrics in percent, ``null`` where there is nothing to measure.
        per_category_ap.csv: AP of every category beside its frequency and counts.
        reliability.csv: the bins of the calibration errors, if ``extra`` asks for them.

    Args:
        dataset_name: registered with a ``json_file``.
        tasks: of ``"bbox"`` and ``"segm"``.
        output_dir: folder for the files above, or None; also an attribute.
        backend: ``"hotcoco"`` or ``"lvis"``; see :func:`~tde_det.evaluation.evaluate_lvis`.
        extra: of ``"fixed"``, ``"pool"`` and ``"calibration"``: what to measure too; see
            :func:`~tde_det.evaluation.report_lvis`.

    Raises:
        InputError: the backend or an extra is unknown.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str],
        output_dir: Optional[str] = None,
        backend: str = "hotcoco",
        extra: Sequence[str] = (),
    ):
        check_backend(backend)
        check_extra(extra)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._tasks, self.output_dir, self._backend = tasks, output_dir, backend
        self._extra: Dict[str, Any] = dict.fromkeys(extra, True)
        self._unfinished: Optional[Unfinished] = None
        self.reset()

    def keep_in(self, unfinished: Unfinished) -> None:
        """Keep the detections on disk from now on, not in memory."""
        self._unfinished = unfinished

    def reset(self) -> None:
        self._detections: List[Detections] = []  # of one image each

    def process(self, inputs, outputs) -> None:
        for entry, output in zip(inputs, outputs):
            instances = output["instances"]
            if self._unfinished is not None:
                detections = Detections.from_instances(instances, entry["image_id"])
                self._unfinished.append(detections)
            elif len(instances):
                self._detections.append(Detections.from_instances(instances, entry["image_id"]))

    def _collect(self) -> Optional[Detections]:
        """The detections of all processes on the main one, None on the others."""
        if self._unfinished is not None:
            return self._unfinished.collect()
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return None
        return Detections.concatenate([part for parts in gathered for part in parts])

    def evaluate(
        self, ground_truth: Optional[Dict[str, Any]] = None
    ) -> Dict[str, Dict[str, float]]:
        """Metrics per task on the main process, ``{}`` on the others and without annotations.

        Args:
            ground_truth: from :func:`read_lvis_json`, by default that of the data set's json. With
                some of its images, the detections in others do not count.
        """
        detections = self._collect()
        if detections is None:
            return {}
        if ground_truth is None:
            ground_truth = read_lvis_json(self._metadata.json_file)
        images = [image["id"] for image in ground_truth["images"]]
        known = np.isin(detections.image_ids, images)
        if not known.all():
            detections = detections[known]
        categories = self._metadata.get("lvis_categories") or complete_categories(ground_truth)
        # The model's contiguous classes become the annotations' category ids.
        ids = np.array([category["id"] for category in categories])
        detections = dataclasses.replace(detections, category_ids=ids[detections.category_ids])
        metrics_file = None
        if self.output_dir:
            os.makedirs(self.output_dir, exist_ok=True)
            metrics_file = os.path.join(self.output_dir, "metrics.json")
            path = os.path.join(self.output_dir, "lvis_instances_results.json")
            write_detections(detections, path)
        if not ground_truth["annotations"]:
            logger.info("%s has no annotations: nothing to measure", self._metadata.json_file)
            return {}
        if not len(detections):
            logger.warning("The model detected nothing in %s", self._metadata.json_file)
        results = report_lvis(
            *(ground_truth, categories, detections, self._tasks, metrics_file, self._backend),
            **self._extra,
        )
        if self.output_dir:  # else, of many evaluations, whose caller shows them side by side
            logger.info("LVIS metrics:\n%s", format_table(results))
        return results
