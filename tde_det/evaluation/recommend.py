"""Which adjustments to use for a checkpoint: chosen on some images, measured on the others."""

import csv
import logging
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm

from ..adjustments import parse_chains
from ..data.lvis_json import read_lvis_json
from ..errors import InputError
from ..modeling import needed_box_predictors
from ..modeling.build import TrainingSet
from ..output_files import check_writable, set_aside
from .lvis_eval import METRICS
from .sweep import chain_of, collect_detections, title_of
from .sweep_table import Chain, Metrics, best

logger = logging.getLogger(__name__)

# Each row is a family; its best setting stands for it.
FAMILIES = (
    "none",
    "tde alpha=0.5,1,1.5,2",
    "tau_norm tau=0.25,0.5,0.75,1",
    "ncm temperature=8,16,32,64",
    "prototypes strength=4,8,16,32",
    "norcal gamma=0.1,0.2,0.4,0.6,0.8,1,1.5",
    "logit_adjustment tau=0.1,0.2,0.4,0.7,1,1.5",
    "fracal strength=0,0.5,1,2,4",
    "tde alpha=0.5,1 + norcal gamma=0.1,0.2,0.4",
    "tau_norm tau=0.25,0.5 + norcal gamma=0.1,0.2,0.4",
    "prototypes strength=4,8,16 + norcal gamma=0.1,0.2,0.4",
)


class Recommendation(NamedTuple):
    """What :func:`recommend` found.

    Attributes:
        task: by whose AP settings are chosen, ``"segm"`` or, without masks, ``"bbox"``.
        num_images: of the selection and of the report.
        selected: the metrics on the selection's images, of every setting.
        reported: those on the report's images, of each family's best setting.
        chosen: the setting with the highest AP on the selection's images.
        current: the model's own setting, in both.
    """

    task: str
    num_images: Tuple[int, int]
    selected: Dict[str, Metrics]
    reported: Dict[str, Metrics]
    chosen: str
    current: str


def current_chain(predictors: Sequence[Any]) -> Chain:
    """What the model applies as it is."""
    return parse_chains(predictors[0].adjustments.describe())[0]


def families_for(predictors: Sequence[Any], data: TrainingSet) -> List[List[Chain]]:
    """The settings of all families that mean something for a model, and its own."""
    families: List[List[Chain]] = []
    for text in FAMILIES:
        chains: List[Chain] = [*parse_chains(text)]
        try:
            for predictor in predictors:
                chain_of(predictor, chains[0], data)
        except InputError as error:
            logger.info("left out: %s", error)
        else:
            families.append(chains)
    current = current_chain(predictors)
    return [*families, [current]] if current else families


def split_images(ground_truth: Dict[str, Any], part: float) -> List[Dict[str, Any]]:
    """Two sets of annotations of different images: ``part`` of the images, and the rest.

    The split is random and always the same.
    """
    ids = sorted((image["id"] for image in ground_truth["images"]), key=str)
    order = np.random.default_rng(0).permutation(len(ids))
    chosen = {ids[i] for i in order[: round(part * len(ids))].tolist()}
    return [
        {
            **ground_truth,
            "images": [i for i in ground_truth["images"] if (i["id"] in chosen) == is_first],
            "annotations": [
                a for a in ground_truth["annotations"] if (a["image_id"] in chosen) == is_first
            ],
        }
        for is_first in (True, False)
    ]


def recommend(
    cfg: CfgNode,
    model: GeneralizedRCNN,
    loader: Any,
    dataset_name: str,
    output_dir: str,
    part: float = 0.5,
) -> Optional[Recommendation]:
    """Evaluate all adjustments that mean something for a model, from one pass over the images.

    Settings are chosen on ``part`` of the images and measured on the rest, so that the numbers are
    those of images that the choice has not seen. Writes ``recommend.csv``.

    Args:
        cfg, model, loader, dataset_name: see :func:`~tde_det.evaluation.sweep.sweep`.
        output_dir: folder for the table.
        part: of the images, in (0, 1).

    Returns:
        None on other processes than the main one.

    Raises:
        InputError: the model cannot be adjusted, or a part has no annotations.
    """
    if not 0 < part < 1:
        raise InputError(f"the part of the images to choose on must be in (0, 1), got {part}")
    path = os.path.join(output_dir, "recommend.csv")
    if comm.is_main_process():
        check_writable(path)
    predictors = needed_box_predictors(model)
    families = families_for(predictors, TrainingSet(cfg))
    chains = [chain for family in families for chain in family]
    selection, report = split_images(
        read_lvis_json(MetadataCatalog.get(dataset_name).json_file), part
    )
    for name, annotations in (("choose", selection), ("report", report)):
        if not annotations["annotations"]:
            raise InputError(f"{dataset_name}: the images to {name} on have no annotations")
    evaluators = collect_detections(cfg, model, loader, dataset_name, chains)
    selected = {title: evaluator.evaluate(selection) for title, evaluator in evaluators.items()}
    task = "segm" if model.roi_heads.mask_on else "bbox"
    winners: List[str] = []
    if comm.is_main_process():
        titles = [[title_of(chain) for chain in family] for family in families]
        winners = [best({t: selected[t] for t in family}, task) or family[0] for family in titles]
    winners = comm.all_gather(winners)[0]  # all processes have detections to give
    reported = {title: evaluators[title].evaluate(report) for title in winners}
    if not comm.is_main_process():
        return None
    set_aside(path)
    _write(path, {"choose": selected, "report": reported})
    num_images = len(selection["images"]), len(report["images"])
    chosen = best(selected, task) or "none"
    current = title_of(current_chain(predictors))
    return Recommendation(task, num_images, selected, reported, chosen, current)


def _write(path: str, parts: Dict[str, Dict[str, Metrics]]) -> None:
    """All numbers, a line for each setting and part of the images."""
    tasks = list(next(iter(parts["choose"].values())))
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        columns = [f"{task}/{metric}" for task in tasks for metric in METRICS]
        writer.writerow(["images", "adjustments", *columns])
        for part, results in parts.items():
            for title, metrics in results.items():
                numbers = (metrics[task][metric] for task in tasks for metric in METRICS)
                cells = ("" if np.isnan(number) else repr(number) for number in numbers)
                writer.writerow([part, title, *cells])


def how_to_use(cfg: CfgNode, model: GeneralizedRCNN, chosen: str) -> str:
    """The changes to the config that make a model use a setting."""
    predictors = needed_box_predictors(model)
    if chosen == title_of(current_chain(predictors)):
        return "the config as it is"
    steps = [] if chosen == "none" else chosen.split(" + ")
    others = [step for step in steps if not step.startswith("tde")]
    alpha = next((step.split("=")[1] for step in steps if step.startswith("tde")), "0")
    if not others and predictors[0].adjustments.keys() - {"tde"}:
        others = ["none"]  # those that there are, of the config or the checkpoint, have to go
    words = []
    if not cfg.LAZY_CONFIG.FILE:
        words += [f"MODEL.TDE.ALPHA {alpha}"] if predictors[0].is_normalized else []
        words += [f'MODEL.ADJUSTMENTS "{others}"'] if others else []
    else:
        names = [n for n, module in model.named_modules() if module in predictors]
        if predictors[0].is_normalized:
            keys = (n.replace("box_predictor.", "box_predictors.") for n in names)
            words += [f"model.{key}.adjustments.tde.alpha={alpha}" for key in keys]
        words += [f'"train.adjustments={others}"'] if others else []
    return " ".join(words) or "the config as it is"
