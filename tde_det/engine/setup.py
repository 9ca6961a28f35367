"""Turn a command line into a checked, frozen config."""

import argparse
import functools
import logging
import math
import os
from typing import Any, Iterable, List

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.engine import default_setup
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_tde_config
from ..data import register_custom_sets
from ..data.custom_sets import missing_data_hint
from ..errors import InputError
from ..evaluation import check_backend
from .checkpoints import readable_checkpoint
from .decoupling import check_decoupling

logger = logging.getLogger(__name__)


def fall_back_to_cpu(cfg: CfgNode) -> None:
    """Without CUDA, change ``MODEL.DEVICE`` to ``"cpu"`` and switch AMP off, saying so.

    Raises:
        InputError: there is no such device.
    """
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: {reason}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning('This machine has no usable CUDA: MODEL.DEVICE is now "cpu"')
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        logger.warning("Detectron2 trains with AMP on CUDA only: SOLVER.AMP.ENABLED is now False")
        cfg.SOLVER.AMP.ENABLED = False


def unfreeze_without_weights(cfg: CfgNode, resume: bool) -> None:
    """Without pretrained weights, train the backbone's batch norm and all of its layers.

    Frozen batch norm of a fresh backbone normalises nothing: a ResNet-101 then multiplies its input
    by 10⁵ and diverges within iterations. A checkpoint with trained statistics fits a frozen one.
    A resumed training keeps the norm that it began with.
    """
    if cfg.MODEL.WEIGHTS or cfg.MODEL.RESNETS.NORM != "FrozenBN":
        return
    if not (resume and _was_frozen(cfg.OUTPUT_DIR)):
        logger.warning(
            "MODEL.WEIGHTS is empty, so there are no statistics for frozen batch norm: "
            'MODEL.RESNETS.NORM is now "BN" and MODEL.BACKBONE.FREEZE_AT 0'
        )
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0


def _was_frozen(folder: str) -> bool:
    """Whether the last checkpoint in a folder is of a backbone with frozen batch norm."""
    checkpointer = DetectionCheckpointer(torch.nn.Module(), folder)
    if not checkpointer.has_checkpoint():
        return False
    path = checkpointer.get_checkpoint_file()
    with readable_checkpoint(path):
        state = torch.load(path, map_location="cpu", weights_only=False)["model"]
    counter = "stem.conv1.norm.num_batches_tracked"  # which trained batch norm alone has
    return not any(key.endswith(counter) for key in state)


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
    """Refuse a training without images or iterations; drop a step that comes after its end.

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
    # Detectron2 drops those beyond the end, but fails at one on it.
    cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
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


def _spell_floats(cfg: CfgNode, opts: List[str]) -> List[str]:
    """Let ``MODEL.TDE.ALPHA 0`` stand for 0.0, which the config's type check insists on."""
    spelled = list(opts)
    for i in range(0, len(opts) - 1, 2):
        node: Any = cfg
        for key in str(opts[i]).split("."):
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, float) and str(opts[i + 1]).lstrip("+-").isdigit():
            spelled[i + 1] = f"{opts[i + 1]}.0"
    return spelled


def _check_values(node: CfgNode, name: str) -> None:
    """Refuse keys of ours without a value, which the config's type check takes."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            _check_values(value, f"{name}.{key}")
        elif value is None:
            raise InputError(f"config: {name}.{key} has no value")


def read_config(args: argparse.Namespace) -> CfgNode:
    """Merge Detectron2's defaults, ours, ``args.config_file`` and ``args.opts``.

    Raises:
        InputError: the config file does not exist, or a key or value is wrong.
    """
    cfg = get_cfg()
    add_tde_config(cfg)
    if args.config_file and not os.path.isfile(args.config_file):
        raise InputError(f"--config-file {args.config_file} does not exist")
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(_spell_floats(cfg, args.opts))
    except (AssertionError, KeyError, ValueError) as error:
        reason = str(error.args[0] if error.args else error)
        if "<class 'float'> vs. <class 'int'>" in reason:
            reason += ". Write 1.0, not 1, in a config file"
        if "\n" in reason and "config key: " in reason:  # the whole node
            reason = f"{reason.split('config key: ')[-1]} is a section with keys, not a value"
        raise InputError(f"config: {reason}") from error
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"--config-file {args.config_file} is no mapping of keys to values"
        ) from error
    except RecursionError as error:
        raise InputError(f"--config-file {args.config_file} is a _BASE_ of itself") from error
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"--config-file {args.config_file}: {error}") from error
    _check_values(cfg.MODEL.TDE, "MODEL.TDE")
    _check_values(cfg.MODEL.LONG_TAIL, "MODEL.LONG_TAIL")
    check_names(cfg)
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """Read config file and command line, register and check data sets, start logging.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        InputError: the config file or a data set cannot be used.
    """
    cfg = read_config(args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tde_det")
    fall_back_to_cpu(cfg)
    if not args.eval_only:
        unfreeze_without_weights(cfg, args.resume)
    register_custom_sets(cfg)
    names = cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN + cfg.DATASETS.TEST
    if not names or not (args.eval_only or cfg.DATASETS.TRAIN):
        raise InputError("DATASETS names no data set to use: give a --config-file of configs/")
    check_files(names)
    check_num_classes(cfg, names)
    check_backend(cfg.TEST.LVIS_BACKEND)
    check_weights(cfg, args)
    check_heads(cfg)
    if not args.eval_only:
        check_schedule(cfg)
        check_decoupling(cfg, args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg
