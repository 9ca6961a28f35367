"""What a config is checked for before anything is loaded or built.

All raise :class:`InputError`, which names the key and the way out.
"""

import argparse
import functools
import math
import os
from typing import Iterable

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

from ..data.custom_sets import missing_data_hint
from ..errors import InputError


def check_files(names: Iterable[str]) -> None:
    """Find out now whether data sets are there, not after minutes of loading.

    Raises:
        InputError: naming what is missing and how to get it.
    """
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


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Look for ``MODEL.WEIGHTS``, unless ``--resume`` may find another checkpoint.

    Raises:
        InputError: it is no file, or an evaluation has none.
    """
    weights = cfg.MODEL.WEIGHTS
    if args.resume or "://" in weights or os.path.isfile(weights):
        return
    if weights:
        raise InputError(f"MODEL.WEIGHTS is {weights}, which does not exist")
    if args.eval_only:
        raise InputError(
            "an evaluation needs a checkpoint: MODEL.WEIGHTS output/model_final.pth, or --resume "
            "for the last one in OUTPUT_DIR"
        )


def check_num_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Compare the model's number of classes with that of data sets.

    Raises:
        InputError: they differ.
    """
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


def check_schedule(cfg: CfgNode) -> None:
    """Refuse a training without images or iterations.

    Raises:
        InputError: naming the key.
    """
    for key in ("IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise InputError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")
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


def check_names(cfg: CfgNode) -> None:
    """Look up the model's parts in Detectron2's registries.

    Raises:
        InputError: naming the key, and what there is.
    """
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
    """Refuse keys of MODEL.LONG_TAIL that the ROI heads of another package would ignore.

    Raises:
        InputError: naming them.
    """
    node, heads = cfg.MODEL.LONG_TAIL, cfg.MODEL.ROI_HEADS.NAME
    if heads in ("TDECascadeROIHeads", "TDEStandardROIHeads"):
        return
    if node.LOSS != "cross_entropy" or node.DECOUPLE:
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS {node.LOSS!r} and DECOUPLE {node.DECOUPLE!r} have no effect on "
            f"MODEL.ROI_HEADS.NAME {heads}: set it to TDECascadeROIHeads or TDEStandardROIHeads"
        )


def check_values(node: CfgNode, name: str) -> None:
    """Refuse keys of ours without a value, which the config's type check takes."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            check_values(value, f"{name}.{key}")
        elif value is None:
            raise InputError(f"config: {name}.{key} has no value")
