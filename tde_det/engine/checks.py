"""What a config is checked for before anything is loaded or built: :data:`CHECKS`.

All raise :class:`InputError`, which names the key and the way out.
"""

import functools
import math
import os
from typing import Callable, Dict, Iterable, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data.custom_sets import missing_data_hint
from ..data.mapper import check_jitter
from ..errors import InputError
from ..evaluation import check_backend, check_extra
from ..modeling.timm_backbone import check_timm, check_timm_start
from ..restricted_pickle import read_pickle
from .download import check_address, fetch, is_address
from .value_checks import check_detectron2_values


def check_files(names: Iterable[str]) -> None:
    """Find out now whether data sets are there, not after minutes of loading."""
    for name in names:
        if name not in DatasetCatalog.list():
            known = [n for n in DatasetCatalog.list() if "lvis" in n]
            raise InputError(
                f"No data set is called {name!r}. Add it to DATASETS.LVIS_CUSTOM, or use one of: "
                + ", ".join(known)
            )
        metadata = MetadataCatalog.get(name)
        for path in (metadata.get("json_file"), metadata.get("image_root")):
            if path is not None and not os.path.exists(path):
                raise InputError(f"{name}: {path} does not exist. {missing_data_hint()}")


def check_num_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Compare the model's number of classes with that of data sets."""
    for name in names:
        metadata = MetadataCatalog.get(name)
        classes = metadata.get("thing_classes")
        if classes is None and metadata.get("evaluator_type") == "lvis":
            classes = get_lvis_instances_meta(name)["thing_classes"]
        if classes is not None and len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise InputError(
                f"{name} has {len(classes)} classes, but MODEL.ROI_HEADS.NUM_CLASSES is "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}. Set it to {len(classes)}."
            )


def _check_proposals(key: str, cfg: CfgNode) -> None:
    """Detectron2 unpickles these files: find out before it whether they hold data alone."""
    paths, names = (
        cfg.DATASETS[k.split(".")[1]] for k in (key, key.replace("PROPOSAL_FILES_", ""))
    )
    if len(paths) != len(names):
        raise InputError(
            f"MODEL.LOAD_PROPOSALS: {key} must name {len(names)} files, a data set each"
        )
    for path in paths:
        try:
            check_address(path)
            read_pickle(PathManager.get_local_path(path))
        except InputError as error:
            raise InputError(f"{path}, of precomputed proposals: {error}") from error


def _check_data(key: str, cfg: CfgNode, files: bool = True) -> None:
    """``"TRAIN"`` or ``"TEST"``: its data sets are there and have the model's classes."""
    names = cfg.DATASETS[key]
    if not names:
        raise InputError(f"DATASETS.{key} names no data set: give a config file of configs/")
    if files:
        check_files(names)
        if cfg.MODEL.LOAD_PROPOSALS:
            _check_proposals(f"DATASETS.PROPOSAL_FILES_{key}", cfg)
    check_num_classes(cfg, names)


def check_start(cfg: CfgNode) -> None:
    """``MODEL.WEIGHTS``, if there is one, is a file, or an address whose file can be had."""
    weights = cfg.MODEL.WEIGHTS
    if is_address(weights):
        fetch(weights)
    elif weights and not os.path.isfile(weights):
        raise InputError(f"MODEL.WEIGHTS is {weights}, which does not exist")


def check_weights(cfg: CfgNode) -> None:
    """``MODEL.WEIGHTS`` names the checkpoint to use."""
    if not cfg.MODEL.WEIGHTS:
        raise InputError("no checkpoint is named: add MODEL.WEIGHTS output/model_final.pth")
    check_start(cfg)


def check_schedule(cfg: CfgNode) -> None:
    """A training has images and iterations."""
    for key in ("IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD", "ACCUMULATE"):
        if cfg.SOLVER[key] < 1:
            raise InputError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")
    if cfg.SOLVER.SKIP_NONFINITE < 0:
        raise InputError(f"SOLVER.SKIP_NONFINITE must be ≥ 0, got {cfg.SOLVER.SKIP_NONFINITE}")
    if cfg.SOLVER.ON_FULL_DISK not in ("stop", "continue"):
        raise InputError(
            f'SOLVER.ON_FULL_DISK must be "stop" or "continue", got {cfg.SOLVER.ON_FULL_DISK!r}'
        )
    if not 0 <= cfg.SOLVER.BASE_LR < math.inf:
        raise InputError(f"SOLVER.BASE_LR must be at least 0, got {cfg.SOLVER.BASE_LR}")
    if cfg.SEED >= 2**32:
        raise InputError(f"SEED must be below 2³², got {cfg.SEED}")
    processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, the images of all processes "
            f"together: take a multiple of {processes}, their number"
        )
    if cfg.SOLVER.IMS_PER_BATCH // processes % cfg.SOLVER.ACCUMULATE:
        raise InputError(
            f"SOLVER.ACCUMULATE is {cfg.SOLVER.ACCUMULATE}, which does not divide the "
            f"{cfg.SOLVER.IMS_PER_BATCH // processes} images of a process and step"
        )


def check_names(cfg: CfgNode) -> None:
    """The model's parts are in Detectron2's registries."""
    for key, registry in {
        "META_ARCHITECTURE": META_ARCH_REGISTRY,
        "BACKBONE.NAME": BACKBONE_REGISTRY,
        "PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
        "ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    }.items():
        name = functools.reduce(getattr, key.split("."), cfg.MODEL)
        if name and name != "PrecomputedProposals" and name not in registry:
            known = ", ".join(sorted(n for n, _ in registry))
            raise InputError(f"MODEL.{key} is {name!r}; there are: {known}")


def check_heads(cfg: CfgNode) -> None:
    """Keys for training are used with ROI heads of ours; those of others would ignore them."""
    node, heads = cfg.MODEL.LONG_TAIL, cfg.MODEL.ROI_HEADS.NAME
    if heads in ("TDECascadeROIHeads", "TDEStandardROIHeads"):
        return
    if node.LOSS != "cross_entropy" or node.DECOUPLE:
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS {node.LOSS!r} and DECOUPLE {node.DECOUPLE!r} have no effect on "
            f"MODEL.ROI_HEADS.NAME {heads}: set it to TDECascadeROIHeads or TDEStandardROIHeads"
        )


def _check_values(node: CfgNode, name: str) -> None:
    """Every key has a value; the config's own type check takes None for anything."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _check_values(value, f"{name}.{key}")
        elif value is None:
            raise InputError(f"config: {name}.{key} has no value")


def check_values(cfg: CfgNode) -> None:
    """Keys of ours have values."""
    _check_values(cfg.MODEL.TDE, "MODEL.TDE")
    _check_values(cfg.MODEL.LONG_TAIL, "MODEL.LONG_TAIL")
    _check_values(cfg.MODEL.TIMM, "MODEL.TIMM")
    _check_values(cfg.INPUT.LSJ, "INPUT.LSJ")


# What is checked, by what is going to be used.
CHECKS: Dict[str, Tuple[Callable[[CfgNode], None], ...]] = {
    "read": (
        check_values,
        check_detectron2_values,
        check_names,
        check_heads,
        check_timm,
        check_jitter,
    ),
    "train data": (functools.partial(_check_data, "TRAIN"),),
    "test data": (
        functools.partial(_check_data, "TEST"),
        lambda cfg: check_backend(cfg.TEST.LVIS_BACKEND),
        lambda cfg: check_extra(cfg.TEST.LVIS_EXTRA),
    ),
    "class names": (functools.partial(_check_data, "TEST", files=False),),
    "training": (check_schedule,),
    "start": (check_start, check_timm_start),  # from weights, or from none
    "weights": (check_weights,),
}
