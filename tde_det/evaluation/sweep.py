"""LVIS metrics of many inference settings from one pass over the images."""

import csv
import logging
import math
import os
from typing import Any, Dict, List, Optional, Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from torch import Tensor

from ..data.lvis_json import read_lvis_json
from ..errors import InputError
from ..inference.settings import Setting, predictor_with
from ..inference.shared_forward import SharedForward
from .evaluator import LongTailEvaluator
from .lvis_eval import METRICS

logger = logging.getLogger(__name__)

PLOTTED = {"AP": "black", "APr": "tab:red", "APc": "tab:orange", "APf": "tab:blue"}
AXES = {"alpha": "α (TDE)", "tau_norm": "τ (τ-normalisation)", "norcal": "γ (NorCal)"}
TASKS = {"bbox": "box AP", "segm": "mask AP"}

Metrics = Dict[str, Dict[str, float]]  # of a task, in percent


class _EvaluatorOfEach(DatasetEvaluator):
    """An evaluator for each setting; what has been evaluated is written at once.

    Args:
        evaluators: by setting.
        json_file: the annotations.
        path: of the table to write.
    """

    def __init__(self, evaluators: Dict[Setting, LongTailEvaluator], json_file: str, path: str):
        self._evaluators, self._json_file, self._path = evaluators, json_file, path

    def reset(self) -> None:
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator, output in zip(self._evaluators.values(), outputs):
            evaluator.process(inputs, output)

    def evaluate(self) -> Dict[Setting, Metrics]:
        ground_truth = read_lvis_json(self._json_file) if comm.is_main_process() else None
        results: Dict[Setting, Metrics] = {}
        failed: Optional[Exception] = None
        for setting, evaluator in self._evaluators.items():
            try:
                results[setting] = evaluator.evaluate(ground_truth)
            except Exception as error:  # the others are worth hours
                logger.exception("%s could not be evaluated", setting)
                failed = error
            if comm.is_main_process():
                write_table(self._path, results)
            evaluator.reset()
        if failed is not None:
            raise failed
        return results


def sweep(
    model: GeneralizedRCNN,
    loader: Any,
    dataset_name: str,
    settings: Sequence[Setting],
    output_dir: str,
    *,
    counts: Optional[Tensor] = None,
    backend: str = "hotcoco",
) -> Dict[Setting, Metrics]:
    """Evaluate a model once for each setting, from one forward pass per image.

    Writes ``sweep.csv``, with a row for each setting as soon as it is evaluated, and ``sweep.png``.

    Args:
        model: stays as it is.
        loader: of the data set's test images, one at a time.
        dataset_name: registered, in LVIS format.
        settings: from :func:`tde_det.inference.settings.list_settings`.
        output_dir: folder for the files.
        counts, backend: see :func:`~tde_det.inference.settings.predictor_with` and
            :func:`~tde_det.evaluation.evaluate_lvis`.

    Returns:
        by setting, the metrics of every task as a plain evaluation with it gives them, to the bit;
        on the main process, ``{}`` elsewhere.

    Raises:
        InputError: a setting does not fit the model, or the table cannot be written; both before
            the forward pass.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") != "lvis":
        raise InputError(f"DATASETS.TEST: {dataset_name} has no annotations in LVIS format")
    if not isinstance(model, GeneralizedRCNN):
        raise InputError(f"MODEL.META_ARCHITECTURE {type(model).__name__} has no box classifier")
    predictors = [predictor_with(model.roi_heads.box_predictor, s, counts) for s in settings]
    tasks = ("bbox", "segm") if model.roi_heads.mask_on else ("bbox",)
    path = os.path.join(output_dir, "sweep.csv")
    if comm.is_main_process():
        write_table(path, {})
    evaluators = {s: LongTailEvaluator(dataset_name, tasks, None, backend) for s in settings}
    each = _EvaluatorOfEach(evaluators, metadata.json_file, path)
    results = inference_on_dataset(SharedForward(model, predictors), loader, each)
    results = {setting: metrics for setting, metrics in results.items() if metrics}
    if results:
        plot(results, os.path.join(output_dir, "sweep.png"))
    return results


def write_table(path: str, results: Dict[Setting, Metrics]) -> None:
    """Write one row for each setting, with all digits; empty where there is nothing to measure.

    Without results, only find out whether it can be written: an older table stays until then.

    Raises:
        InputError: the file cannot be written.
    """
    tasks = list(dict.fromkeys(task for metrics in results.values() for task in metrics))
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "a"):
            pass
        if not results:
            return
        with open(path, "w", newline="") as f:
            writer = csv.writer(f)
            columns = [f"{task}/{metric}" for task in tasks for metric in METRICS]
            writer.writerow(["setting", "method", "value", "background", *columns])
            for setting, metrics in results.items():
                numbers = [metrics[task][metric] for task in tasks for metric in METRICS]
                writer.writerow(
                    [
                        *(setting, setting.method, setting.value),
                        "not exempt" if setting.exempt is False else "",
                        *("" if math.isnan(number) else repr(number) for number in numbers),
                    ]
                )
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def best(results: Dict[Setting, Metrics], task: str) -> Optional[Setting]:
    """The setting with the highest AP, the first of equals; None if there is nothing to measure."""
    measured = [s for s, metrics in results.items() if not math.isnan(metrics[task]["AP"])]
    return max(measured, key=lambda setting: results[setting][task]["AP"], default=None)


def plot(results: Dict[Setting, Metrics], path: str) -> None:
    """Draw AP, AP_r, AP_c and AP_f against the value, by task (rows) and method (columns).

    AUTO_ALPHA, which has no one value, is a line across the column of α.
    """
    from matplotlib.figure import Figure  # takes a second, which only this function needs
    from matplotlib.lines import Line2D

    tasks = list(next(iter(results.values())))
    methods = list(dict.fromkeys(s.method for s in results if s.value is not None)) or [""]
    figure = Figure((4.5 * len(methods), 3 * len(tasks) + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(len(tasks), len(methods), squeeze=False, sharey="row")
    for row, task in zip(axes, tasks):
        for ax, method in zip(row, methods):
            for metric, colour in PLOTTED.items():
                for exempt, style in ((None, "o-"), (False, "s--")):
                    curve = [s for s in results if (s.method, s.exempt) == (method, exempt)]
                    curve.sort(key=lambda s: s.value or 0)
                    values = [results[s][task][metric] for s in curve]
                    ax.plot([s.value for s in curve], values, style, color=colour)
                for setting in results if ax is row[0] else ():
                    if setting.value is None:
                        style = ":" if setting.exempt is None else "-."
                        ax.axhline(results[setting][task][metric], color=colour, linestyle=style)
            ax.set_xlabel(AXES.get(method, method))
            ax.grid(alpha=0.3)
        row[0].set_ylabel(TASKS.get(task, task))
    entries: List[Any] = [Line2D([], [], color=colour, label=m) for m, colour in PLOTTED.items()]
    for is_auto, exempt, style, label in (
        (True, None, ":", "AUTO_ALPHA"),
        (False, False, "s--", "background not exempt"),
        (True, False, "-.", "AUTO_ALPHA, not exempt"),
    ):
        if any((one.value is None, one.exempt) == (is_auto, exempt) for one in results):
            entries += axes[0, 0].plot([], [], style, color="grey", label=label)
    figure.legend(handles=entries, loc="outside upper center", ncols=3, fontsize="small")
    figure.savefig(path)
