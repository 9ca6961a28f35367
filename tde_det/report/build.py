"""From runs to a page: reads what there is, measures the rest, and writes a folder."""

import dataclasses
import importlib.util
import itertools
import logging
import os
from typing import Any, Dict, List, Sequence

import numpy as np
import pycocotools.mask as mask_util

from ..engine import Trainer, load_model
from ..errors import InputError
from ..evaluation import read_detections
from ..evaluation.lvis_eval import image_sizes, lvis_matches, select_for_task
from ..evaluation.tide import ERRORS, Verdicts, count_errors, find_errors, mended_ap
from . import gallery
from .bootstrap import MIN_IMAGES, Samples, count_objects, image_weights, interval, sample_aps
from .dataset import DataSet, read_dataset, register_annotations
from .model_pass import has_direction, with_and_without_tde
from .page import REPORT, check_folder, prepare_folder, write_script
from .runs import Run, dataset_of, find_runs, needed_results
from .why import explain

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Options:
    """How a report is made.

    Attributes:
        dataset: registered name; "" for that of the first run's config.
        annotations, images: an LVIS-format json and the folder of its images, in its place.
        opts: changes to the runs' configs.
        use_models: whether checkpoints are used at all.
        model_images: of the pass that measures cosines, at most.
        resamples: of the bootstrap.
        shown: which detections are drawn.
    """

    dataset: str = ""
    annotations: str = ""
    images: str = ""
    opts: Sequence[str] = ()
    use_models: bool = True
    model_images: int = 100
    resamples: int = 200
    shown: gallery.Shown = gallery.Shown()


def build_report(paths: Sequence[str], output: str, options: Options) -> str:
    """Write a report of runs.

    Args:
        paths: of the runs, each ``PATH`` or ``NAME=PATH``.
        output: folder of the page; files of an earlier report in it are replaced.

    Returns:
        the path of the page.

    Raises:
        InputError: a run, the data set or an option cannot be used; found before long work.
    """
    _check(options)
    runs = find_runs(paths)
    check_folder(output)
    name = _dataset_name(runs[0], options)
    data = read_dataset(name)
    logged: Dict[str, Any] = {
        "curves": {run.name: run.curves() for run in runs},
        "sweeps": {run.name: run.sweep() for run in runs},
    }
    has_two = len(runs) > 1 or not options.use_models
    for run in runs if has_two else ():  # their files are looked at before models are used
        _read(run, data)
    logged["why"] = _use_models(runs, data, options) if options.use_models else {}
    runs = logged["why"].pop("", runs)  # one run may have become two
    for run in runs:
        if run.detections is None:
            _read(run, data)
    prepare_folder(output)
    _write(output, runs, data, logged, options)
    return os.path.join(output, "index.html")


def _read(run: Run, data: DataSet) -> None:
    """Read a run's detections; they have boxes afterwards."""
    path = needed_results(run, data.name)
    try:
        detections = read_detections(path, image_sizes(data.ground_truth))
        select_for_task(detections, data.ground_truth, "bbox")
    except InputError as error:
        raise InputError(f"{run.name}: {path}: {error}") from error
    if detections.boxes is None:
        boxes = np.array([mask_util.toBbox(rle) for rle in detections.rles()]).reshape(-1, 4)
        detections = dataclasses.replace(detections, boxes=boxes)
    run.detections = detections


def _check(options: Options) -> None:
    if importlib.util.find_spec("plotly") is None:
        raise InputError('a report needs plotly: pip install "tde_det[report]"')
    if bool(options.annotations) != bool(options.images):
        raise InputError("--annotations and --images go together: a json, and where its images are")
    if options.annotations and options.dataset:
        raise InputError("--dataset and --annotations both name a data set: give one of them")
    if options.resamples < 2:
        raise InputError(f"--resamples must be at least 2, got {options.resamples}")
    if options.model_images < 0:
        raise InputError(f"--model-images must be at least 0, got {options.model_images}")
    if not 0 <= options.shown.min_score <= 1:
        raise InputError(f"--min-score must be in [0, 1], got {options.shown.min_score}")
    if options.shown.per_image < 1:
        raise InputError(f"--per-image must be at least 1, got {options.shown.per_image}")


def _dataset_name(run: Run, options: Options) -> str:
    """The data set, registered."""
    if options.annotations:
        return register_annotations(options.annotations, options.images)
    if run.file("config.yaml"):
        cfg = run.config(options.opts)  # registers what DATASETS.LVIS_CUSTOM lists
        return options.dataset or dataset_of(run, cfg)
    if options.dataset:
        return options.dataset
    raise InputError(
        f"{run.path} has no config.yaml: say what it was evaluated on, by --dataset or by "
        "--annotations and --images"
    )


def _use_models(runs: Sequence[Run], data: DataSet, options: Options) -> Dict[str, Any]:
    """By run, what its checkpoint tells; under "" the two runs that one becomes."""
    found: Dict[str, Any] = {}
    for run in runs:
        if not (run.checkpoint() and run.file("config.yaml")):
            continue
        cfg = run.config(options.opts, ["weights"])
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if num_classes != len(data.names):
            raise InputError(
                f"{run.path}: the model has {num_classes} classes, but {data.name} has "
                f"{len(data.names)}: choose its data set by --dataset, or leave it out (--no-model)"
            )
        model = load_model(cfg)
        is_normalized = has_direction(model)
        if is_normalized and len(runs) == 1:
            loader = Trainer.build_test_loader(cfg, data.name)
            made = with_and_without_tde(model, loader, data)
            found[""] = [Run(name, run.path, d) for name, d in made.items()]
        count = options.model_images if is_normalized else 0
        found[run.name] = explain(cfg, model, data.name, data.frequencies, count)
    return found


def _measure(runs: Sequence[Run], data: DataSet, resamples: int) -> Dict[str, List[Samples]]:
    """By task, the APs of every run."""
    found: List[Any] = [run.detections for run in runs]
    has_masks = all(d.masks is not None and None not in d.masks.tolist() for d in found if len(d))
    tasks = ["bbox", "segm"] if has_masks and data.encoded and any(map(len, found)) else ["bbox"]
    weights = image_weights(len(data.files), resamples)
    measured: Dict[str, List[Samples]] = {}
    for task in tasks:
        truth: Any = data.ground_truth if task == "bbox" else data.encoded
        truth = {**truth, "categories": data.ground_truth["categories"]}
        measured[task] = [
            sample_aps(
                lvis_matches(truth, d, task), count_objects(truth), weights, data.frequencies
            )
            for d in found
        ]
    return measured


def _differences(measured: Dict[str, List[Samples]], is_common: np.ndarray) -> Dict[str, Any]:
    """By ``"0,1"`` and so on, and task: intervals of the metrics' and the classes' differences.

    Args:
        is_common: ``bool[C]``, whether a class is in enough images; others have no interval.
    """
    pairs: Dict[str, Any] = {}
    for a, b in itertools.combinations(range(len(next(iter(measured.values())))), 2):
        pairs[f"{a},{b}"] = {
            task: {
                "metrics": {
                    m: interval(samples[a].metrics[m], values)
                    for m, values in samples[b].metrics.items()
                },
                "classes": np.where(
                    is_common, interval(samples[a].classes, samples[b].classes), np.nan
                ),
            }
            for task, samples in measured.items()
        }
    return pairs


def _errors(verdicts: Verdicts, frequencies: Sequence[str]) -> Dict[str, Any]:
    """By group: AP50, what mending each kind of error would add, and how many there are."""
    groups = np.array(frequencies)
    aps = mended_ap(verdicts, len(groups))
    found = {}
    for letters in ("rcf", *"rcf"):
        members = np.flatnonzero(np.isin(groups, [*letters]))
        measured = members[~np.isnan(aps[""][members])]
        means = {k: ap[measured].mean() if len(measured) else np.nan for k, ap in aps.items()}
        found[letters] = {
            "ap50": means[""],
            "gains": [max(means[name] - means[""], 0) for name in ERRORS],
            "counts": count_errors(verdicts, members.tolist()),
        }
    return found


def _called(verdicts: Sequence[Verdicts]) -> np.ndarray:
    """Rows of a class, what each run calls its objects (-1: nothing), and how many objects."""
    counts = verdicts[0].counts
    columns = [verdicts[0].object_classes[counts], *(v.called[counts] for v in verdicts)]
    rows, numbers = np.unique(np.column_stack(columns), axis=0, return_counts=True)
    return np.column_stack([rows, numbers])


def _write(
    folder: str, runs: Sequence[Run], data: DataSet, logged: Dict[str, Any], options: Options
) -> None:
    """Measure, and write all data of the page."""
    detections: List[Any] = [run.detections for run in runs]
    measured = _measure(runs, data, options.resamples)
    logger.info("AP of %d runs and %d resamples is measured", len(runs), options.resamples)
    verdicts = [find_errors(data.ground_truth, d) for d in detections]
    rows = [gallery.shown_rows(v, options.shown) for v in verdicts]
    write_script(
        *(folder, REPORT, "REPORT"),
        {
            "dataset": data.name,
            "images": len(data.files),
            "runs": [run.name for run in runs],
            "classes": {
                "name": data.names,
                "frequency": data.frequencies,
                **{key: data.counts(key) for key in ("train", "objects", "images")},
            },
            "metrics": {
                task: [{m: v[0] for m, v in s.metrics.items()} for s in samples]
                for task, samples in measured.items()
            },
            "aps": {task: [s.classes[0] for s in samples] for task, samples in measured.items()},
            "pairs": _differences(measured, data.counts("images") >= MIN_IMAGES),
            "minImages": MIN_IMAGES,
            "errors": [_errors(v, data.frequencies) for v in verdicts],
            "called": _called(verdicts),
            **logged,
            "shardSize": gallery.SHARD,
            "resamples": options.resamples,
            "minScore": options.shown.min_score,
            "perImage": options.shown.per_image,
            "modelImages": options.model_images,
        },
    )
    write_script(folder, "index", "INDEX", gallery.index_entries(data, verdicts, rows))
    gallery.write_shards(os.path.join(folder, "data"), data, detections, verdicts, rows)
    logger.info("Objects and detections of %d images are written", len(data.files))
    gallery.write_pictures(folder, data)
