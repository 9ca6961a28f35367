"""Optimizer and schedule, of a yaml config by Detectron2, of a ``.py`` config by itself."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

from .lazy_config import is_lazy, lazy_optimizer, lazy_schedule
from .value_checks import errors_name_section


def make_optimizer(cfg: CfgNode, model: nn.Module) -> Any:
    """The optimizer.

    Raises:
        InputError: a value of the config does not fit.
    """
    with errors_name_section(cfg, "SOLVER"):
        return (lazy_optimizer if is_lazy(cfg) else build_optimizer)(cfg, model)


def make_schedule(cfg: CfgNode, optimizer: Any) -> Any:
    """The learning rate's schedule.

    Raises:
        InputError: a value of the config does not fit.
    """
    with errors_name_section(cfg, "SOLVER"):
        return (lazy_schedule if is_lazy(cfg) else build_lr_scheduler)(cfg, optimizer)
