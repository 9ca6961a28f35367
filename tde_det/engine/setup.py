"""Turn a command line into a checked, frozen config."""

import argparse
import logging
import os
from typing import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import register_custom_sets
from ..errors import InputError
from ..modeling.timm_backbone import BUILDERS
from ..weight_files import read_weights
from .checkpoints import readable_checkpoint
from .checks import CHECKS
from .config_file import read_config
from .decoupling import check_decoupling
from .last_checkpoint import last_checkpoint
from .lazy_config import errors_name_paths, is_lazy

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
    uses_timm = cfg.MODEL.BACKBONE.NAME in BUILDERS
    if is_lazy(cfg):
        return
    if uses_timm and cfg.MODEL.TIMM.NORM != "FrozenBN" and not cfg.MODEL.TIMM.FROZEN_STAGES:
        return
    if not uses_timm and cfg.MODEL.RESNETS.NORM != "FrozenBN":
        return
    weights = cfg.MODEL.WEIGHTS or (uses_timm and cfg.MODEL.TIMM.WEIGHTS)
    frozen, reason = bool(weights), "without weights to start from there are no statistics"
    resumed = last_checkpoint(cfg.OUTPUT_DIR) if resume else ""
    if resumed:
        frozen = _is_frozen(resumed, frozen)
        reason = "the training began so"
    if frozen:
        return
    if uses_timm:
        logger.warning('MODEL.TIMM.NORM is now "", and FROZEN_STAGES 0: %s', reason)
        cfg.MODEL.TIMM.NORM = ""
        cfg.MODEL.TIMM.FROZEN_STAGES = 0
    else:
        logger.warning(
            'MODEL.RESNETS.NORM is now "BN", not "FrozenBN", and MODEL.BACKBONE.FREEZE_AT 0: %s',
            reason,
        )
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0


def _is_frozen(path: str, otherwise: bool) -> bool:
    """Whether a checkpoint is of a backbone with frozen batch norm; ``otherwise`` without any."""
    with readable_checkpoint(path):
        state = read_weights(path)["model"]
    own = (key for key in state if key.startswith("backbone.") and ".fpn_" not in key)
    stem = next((key for key in own if key.endswith(".running_mean")), None)
    if stem is None:
        return otherwise
    # Trained batch norm alone has this counter.
    return stem.replace("running_mean", "num_batches_tracked") not in state


def skip_timm_weights(cfg: CfgNode, resume: bool) -> None:
    """A resumed model has its backbone's weights: ``MODEL.TIMM.WEIGHTS`` need not be there."""
    if resume and last_checkpoint(cfg.OUTPUT_DIR):
        cfg.MODEL.TIMM.WEIGHTS = ""


def setup_tool(
    config_file: str, opts: Sequence[str], needs: Sequence[str] = (), data: bool = True
) -> CfgNode:
    """Read a config for a tool that does not train; register its data sets; start logging.

    Args:
        config_file, opts: see :func:`read_config`.
        needs: keys of :data:`~tde_det.engine.checks.CHECKS`: what the tool is going to use.
        data: False for a tool that uses a model alone, whose data sets need not be there.

    Raises:
        InputError: the config or a data set cannot be used.
    """
    setup_logger(distributed_rank=comm.get_rank(), name="tde_det")
    with errors_name_paths(config_file):
        cfg = read_config(config_file, opts)
        fall_back_to_cpu(cfg)
        if data or cfg.MODEL.ADJUSTMENTS:  # whose statistics may be those of DATASETS.TRAIN
            register_custom_sets(cfg)
        for need in needs:
            for check in CHECKS[need]:
                check(cfg)
    return cfg


def _make_output_folder(path: str) -> None:
    try:
        os.makedirs(path or ".", exist_ok=True)
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {path} cannot be made: {error.strerror}") from error


def setup(args: argparse.Namespace) -> CfgNode:
    """Read a command line's config, register and check data sets, start logging.

    Args:
        args: ``config_file``, ``opts``, ``eval_only`` and ``resume``, as Detectron2's
            ``default_argument_parser`` has them.

    Raises:
        InputError: the config file or a data set cannot be used.
    """
    with errors_name_paths(args.config_file):
        cfg = read_config(args.config_file, args.opts)
        _make_output_folder(cfg.OUTPUT_DIR)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tde_det")
        fall_back_to_cpu(cfg)
        if not args.eval_only:
            unfreeze_without_weights(cfg, args.resume)
        skip_timm_weights(cfg, args.resume)
        register_custom_sets(cfg)
        needs = [] if args.eval_only else ["train data", "training"]
        if args.eval_only or cfg.DATASETS.TEST:  # a training may do without
            needs.append("test data")
        if not args.resume:  # which may find another checkpoint
            needs.append("weights" if args.eval_only else "start")
        for check in (check for need in needs for check in CHECKS[need]):
            check(cfg)
    if not args.eval_only:
        # Detectron2 drops those beyond the end, but fails at one on it.
        cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
        check_decoupling(cfg, args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg
