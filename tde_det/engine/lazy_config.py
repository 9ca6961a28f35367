"""LazyConfigs: Detectron2's ``.py`` configs, as the config that everything here reads.

What this package reads of a config (data sets, schedule, folders) is copied into a ``CfgNode``.
Model, optimizer, schedule and mappers are instantiated from the ``.py`` file when they are needed;
the node ``LAZY_CONFIG`` names it and its overrides.
"""

import contextlib
import os
import sys
from typing import Any, Dict, Iterator, Sequence, Tuple

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..config import add_tde_config
from ..data import TolerantMapper
from ..errors import InputError
from .value_checks import errors_name_section

# Where a LazyConfig has what a CfgNode has under another key.
PATHS = {
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.DEVICE": "train.device",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.ADJUSTMENTS": "train.adjustments",
    "DATASETS.LVIS_CUSTOM": "dataloader.lvis_custom",
    "DATASETS.ALLOW_OUTSIDE_ROOT": "dataloader.allow_outside_root",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "dataloader.train.dataset.filter_empty",
    "DATALOADER.ASPECT_RATIO_GROUPING": "dataloader.train.aspect_ratio_grouping",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "INPUT.FORMAT": "dataloader.train.mapper.image_format",
    "INPUT.MASK_FORMAT": "dataloader.train.mapper.instance_mask_format",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.ACCUMULATE": "train.accumulate",
    "SOLVER.SKIP_NONFINITE": "train.skip_nonfinite",
    "SOLVER.ON_FULL_DISK": "train.on_full_disk",
    "TEST.EVAL_PERIOD": "train.eval_period",
}
NEEDED = (
    *("model.roi_heads.num_classes", "dataloader.train.dataset.names", "dataloader.train.mapper"),
    *("dataloader.test.dataset.names", "dataloader.test.mapper", "train.output_dir"),
)


def is_lazy(cfg: CfgNode) -> bool:
    """Whether a config is that of a ``.py`` file."""
    return bool(cfg.LAZY_CONFIG.FILE)


@contextlib.contextmanager
def errors_name_paths(config_file: str) -> Iterator[None]:
    """For a ``.py`` config, let errors name its paths in place of keys."""
    try:
        yield
    except InputError as error:
        if not config_file.endswith(".py"):
            raise
        message = str(error).replace(
            "MODEL.WEIGHTS output/model_final.pth", "train.init_checkpoint=output/model_final.pth"
        )
        for key, where in PATHS.items():
            message = message.replace(key, where)
        raise InputError(message) from error


def _override(lazy: DictConfig, override: str) -> None:
    """Apply ``path.key=value``; keys may be new, but what they belong to must be there."""
    from hydra.errors import OverrideParseException  # takes long, and few need it

    parent = override.split("=")[0].lstrip("+").rpartition(".")[0]
    try:
        if OmegaConf.select(lazy, parent) is None:
            raise InputError(f"{override}: the config has no {parent}")
        LazyConfig.apply_overrides(lazy, [override])
    except (OverrideParseException, KeyError, NotImplementedError, OmegaConfBaseException) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise InputError(f"{override}: {reason}") from error


def load_lazy_config(path: str, overrides: Sequence[str]) -> DictConfig:
    """Run a ``.py`` config and apply ``path.key=value`` overrides.

    Raises:
        InputError: it is no LazyConfig of a detector, or an override cannot be applied.
    """
    if not os.path.isfile(path):
        raise InputError(f"the config file {path} does not exist")
    try:
        lazy = LazyConfig.load(path)
    except Exception as error:  # it is a program: anything can go wrong in it
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    for override in overrides:
        if "=" not in override:
            raise InputError(
                f"{override}: a .py config is changed by path.key=value, such as "
                "train.init_checkpoint=model_final.pth"
            )
        _override(lazy, override)
    for key in NEEDED:
        if OmegaConf.select(lazy, key) is None:
            raise InputError(f"{path} has no {key}, as the LazyConfig of a detector has it")
    return lazy


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _names(names: Any) -> Tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _sampler(sampler: Any) -> Dict[str, Any]:
    """Keys of Detectron2's RFS, of a sampler's name, or of none."""
    if sampler is None or isinstance(sampler, str):
        return {"DATALOADER.SAMPLER_TRAIN": sampler or "TrainingSampler"}
    if sampler.get("_target_") is not RepeatFactorTrainingSampler:
        raise InputError(
            f"dataloader.train.sampler is {sampler.get('_target_')}: give "
            "RepeatFactorTrainingSampler or the name of a sampler, as DATALOADER.SAMPLER_TRAIN"
        )
    return {
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": float(sampler.repeat_factors.repeat_thresh),
    }


def _test_size(augmentations: Any) -> Dict[str, Any]:
    """Keys of the size of test images, if they are resized by their short edge."""
    for augmentation in augmentations:
        if augmentation.get("_target_") is ResizeShortestEdge:
            size = augmentation.short_edge_length
            return {
                "INPUT.MIN_SIZE_TEST": size if isinstance(size, int) else min(size),
                "INPUT.MAX_SIZE_TEST": augmentation.get("max_size", sys.maxsize),
            }
    return {}


def read_lazy_config(path: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The ``CfgNode`` of a ``.py`` config.

    Beside what Detectron2's own have, it may have ``train.seed``, ``train.adjustments`` (as
    MODEL.ADJUSTMENTS), ``train.accumulate``, ``train.skip_nonfinite``, ``train.on_full_disk`` (as
    those of SOLVER) and ``dataloader.lvis_custom`` (as DATASETS.LVIS_CUSTOM).

    Raises:
        InputError: see :func:`load_lazy_config`; or a value has the wrong type.
    """
    lazy = load_lazy_config(path, overrides)
    loaders, heads = lazy.dataloader, lazy.model.roi_heads
    values = {
        "LAZY_CONFIG.FILE": os.path.abspath(path),
        "LAZY_CONFIG.OVERRIDES": list(overrides),
        "MODEL.META_ARCHITECTURE": "LazyConfigModel",
        "MODEL.MASK_ON": heads.get("mask_head") is not None,
        **_sampler(loaders.train.get("sampler")),
        **_test_size(loaders.test.mapper.augmentations),
    }
    for key, where in PATHS.items():
        value = OmegaConf.select(lazy, where)
        if value is not None:
            values[key] = _names(value) if where.endswith(".names") else _plain(value)
    cfg = get_cfg()
    add_tde_config(cfg)
    try:
        cfg.merge_from_list([word for pair in values.items() for word in pair])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    return cfg


def _loaded(cfg: CfgNode) -> DictConfig:
    return load_lazy_config(cfg.LAZY_CONFIG.FILE, cfg.LAZY_CONFIG.OVERRIDES)


def _instantiate(cfg: CfgNode, part: str, node: Any) -> Any:
    try:
        return instantiate(node)
    except (AssertionError, TypeError, ValueError, OmegaConfBaseException) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{part} of {cfg.LAZY_CONFIG.FILE} cannot be made: {reason}") from error


@META_ARCH_REGISTRY.register()
def LazyConfigModel(cfg: CfgNode) -> nn.Module:
    """The model of a ``.py`` config."""
    return _instantiate(cfg, "model", _loaded(cfg).model)


def lazy_optimizer(cfg: CfgNode, model: nn.Module) -> Any:
    """The optimizer of a ``.py`` config."""
    optimizer = _loaded(cfg).optimizer
    optimizer.params.model = model
    return _instantiate(cfg, "optimizer", optimizer)


def lazy_schedule(cfg: CfgNode, optimizer: Any) -> LRMultiplier:
    """The learning rate's schedule of a ``.py`` config."""
    schedule = _instantiate(cfg, "lr_multiplier", _loaded(cfg).lr_multiplier)
    return LRMultiplier(optimizer, schedule, cfg.SOLVER.MAX_ITER)


def build_mapper(cfg: CfgNode, is_train: bool, **changes: Any) -> Any:
    """The mapper of a config, yaml or ``.py``.

    Args:
        is_train: the one for training, else the one for tests.
        changes: arguments in place of its own.
    """
    if not is_lazy(cfg):
        with errors_name_section(cfg, "INPUT"):
            return TolerantMapper(cfg, is_train=is_train, **changes)
    loaders = _loaded(cfg).dataloader
    mapper = loaders.train.mapper if is_train else loaders.test.mapper
    if mapper.get("_target_") is DatasetMapper:
        mapper._target_ = TolerantMapper
    if is_train:  # bitmask for data sets with RLE masks
        mapper.instance_mask_format = cfg.INPUT.MASK_FORMAT
    mapper.update(changes)
    return _instantiate(cfg, "dataloader's mapper", mapper)
