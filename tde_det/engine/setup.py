"""Turn a command line into a checked, frozen config."""

import argparse
import logging
import os
from typing import Any, List

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import add_tde_config
from ..data import register_custom_sets
from ..errors import InputError
from ..evaluation import check_backend
from .checkpoints import readable_checkpoint
from .checks import (
    check_files,
    check_heads,
    check_names,
    check_num_classes,
    check_schedule,
    check_values,
    check_weights,
)
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
    if cfg.MODEL.RESNETS.NORM != "FrozenBN":
        return
    checkpointer = DetectionCheckpointer(torch.nn.Module(), cfg.OUTPUT_DIR)
    if resume and checkpointer.has_checkpoint():
        frozen, reason = _is_frozen(checkpointer.get_checkpoint_file()), "the training began so"
    else:
        frozen, reason = bool(cfg.MODEL.WEIGHTS), "without MODEL.WEIGHTS there are no statistics"
    if not frozen:
        logger.warning(
            'MODEL.RESNETS.NORM is now "BN", not "FrozenBN", and MODEL.BACKBONE.FREEZE_AT 0: %s',
            reason,
        )
        cfg.MODEL.RESNETS.NORM = "BN"
        cfg.MODEL.BACKBONE.FREEZE_AT = 0


def _is_frozen(path: str) -> bool:
    """Whether a checkpoint is of a backbone with frozen batch norm."""
    with readable_checkpoint(path):
        state = torch.load(path, map_location="cpu", weights_only=False)["model"]
    counter = "stem.conv1.norm.num_batches_tracked"  # which trained batch norm alone has
    return not any(key.endswith(counter) for key in state)


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
    check_values(cfg.MODEL.TDE, "MODEL.TDE")
    check_values(cfg.MODEL.LONG_TAIL, "MODEL.LONG_TAIL")
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
        # Detectron2 drops those beyond the end, but fails at one on it.
        cfg.SOLVER.STEPS = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
        check_decoupling(cfg, args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg
