"""Any model of timm that gives feature maps, as a Detectron2 backbone, with or without an FPN.

timm is imported when such a backbone is built.
"""

import difflib
import logging
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ..errors import InputError
from .timm_model import create_model, freeze_stages, reason_of
from .timm_weights import check_source

BUILDERS = ("build_timm_backbone", "build_timm_fpn_backbone")
NORMS = ("", "FrozenBN")

logger = logging.getLogger(__name__)


def check_timm(cfg: CfgNode) -> None:
    """Check ``MODEL.TIMM`` of a config with a timm backbone; others pass.

    Raises:
        InputError: timm is not installed, or a value is wrong.
    """
    if cfg.MODEL.BACKBONE.NAME not in BUILDERS:
        return
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} needs timm: pip install tde_det[timm]"
        ) from error
    node = cfg.MODEL.TIMM
    if not timm.is_model(node.NAME):
        similar = difflib.get_close_matches(node.NAME, timm.list_models())
        hint = ", such as " + ", ".join(similar) if similar else ", such as resnet18"
        raise InputError(f"MODEL.TIMM.NAME {node.NAME!r} is no model of timm: give one{hint}")
    indices = node.OUT_INDICES
    if not all(type(i) is int and i >= 0 for i in indices) or sorted({*indices}) != [*indices]:
        raise InputError(f"MODEL.TIMM.OUT_INDICES must be indices that rise from 0, got {indices}")
    if node.NORM not in NORMS:
        raise InputError(f'MODEL.TIMM.NORM must be "" or "FrozenBN", got {node.NORM!r}')
    if node.FROZEN_STAGES < 0:
        raise InputError(f"MODEL.TIMM.FROZEN_STAGES must be at least 0, got {node.FROZEN_STAGES}")


def check_timm_start(cfg: CfgNode) -> None:
    """Check what a timm backbone would start from: ``MODEL.TIMM.WEIGHTS`` or ``MODEL.WEIGHTS``.

    Raises:
        InputError: it is not there, or is of one of Detectron2's backbones.
    """
    if cfg.MODEL.BACKBONE.NAME not in BUILDERS:
        return
    if "ImageNetPretrained" in cfg.MODEL.WEIGHTS:
        raise InputError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} has weights of another backbone than "
            f'{cfg.MODEL.BACKBONE.NAME}: set MODEL.WEIGHTS "", and MODEL.TIMM.WEIGHTS'
        )
    if not cfg.MODEL.WEIGHTS:
        check_source(cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.TIMM.NAME)


class TimmBackbone(Backbone):
    """Feature maps of a timm model, called by their strides: ``res2`` has stride 4, ``res5`` 32.

    Args:
        net: of ``timm.create_model(…, features_only=True)``.
        positions: of the maps to give in the list that ``net`` gives, by name.
        strides, channels: of the maps, by name.
    """

    def __init__(
        self,
        net: nn.Module,
        positions: Mapping[str, int],
        strides: Mapping[str, int],
        channels: Mapping[str, int],
    ):
        super().__init__()
        self.net = net
        self._positions = dict(positions)
        self._out_features = list(positions)
        self._out_feature_strides = dict(strides)
        self._out_feature_channels = dict(channels)
        self._channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"

    @property
    def size_divisibility(self) -> int:
        """The largest stride: Detectron2 pads images to multiples of it."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """Images ``Tensor[N, C, H, W]`` → maps ``Tensor[N, channels, H / stride, W / stride]``."""
        maps = self.net(x)
        if self._channels_last:  # Swin and others
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return {name: maps[i] for name, i in self._positions.items()}


def _warn_of_pixels(cfg: CfgNode, expected: Mapping[str, Any]) -> None:
    """Warn of images that are not normalised as in the training of the weights."""
    mean, std = ([round(255 * v, 3) for v in expected[key]] for key in ("mean", "std"))
    given = [*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD]
    if cfg.INPUT.FORMAT != "RGB" or any(abs(a - b) > 1 for a, b in zip(given, mean + std)):
        logger.warning(
            "The weights of %s were trained with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN %s and "
            "PIXEL_STD %s, but the config has %s, %s and %s",
            *(cfg.MODEL.TIMM.NAME, mean, std),
            *(cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
        )


def _feature_names(net: Any, indices: Sequence[int], name: str) -> Dict[str, int]:
    """Positions of the features in what ``net`` gives, by name.

    Without indices these are the last ones of strides 4, 8, 16 and 32.
    """
    positions: Dict[str, int] = {}
    strides = net.feature_info.reduction()
    for position, stride in enumerate(strides):
        if not indices and stride not in (4, 8, 16, 32):
            continue
        if stride & (stride - 1):
            raise InputError(
                f"MODEL.TIMM.NAME {name} has a feature of stride {stride}, which is no power of two"
            )
        key = f"res{stride.bit_length() - 1}"
        if indices and key in positions:
            raise InputError(
                f"MODEL.TIMM.OUT_INDICES {[*indices]} of {name} have strides {strides}: take one "
                "feature of a stride"
            )
        positions[key] = position
    if not positions:
        raise InputError(
            f"MODEL.TIMM.NAME {name} has features of strides {strides}, none of 4, 8, 16 or 32"
        )
    return positions


@torch.no_grad()
def _try(backbone: TimmBackbone, in_chans: int, name: str) -> None:
    """Refuse a model that takes no image of any size, now and not in a training's first step."""
    height, width = 2 * backbone.size_divisibility, 3 * backbone.size_divisibility
    backbone.eval()
    try:
        maps = backbone(torch.zeros(1, in_chans, height, width))
        for key, shape in backbone.output_shape().items():
            expected = (1, shape.channels, height // shape.stride, width // shape.stride)
            if tuple(maps[key].shape) != expected:
                raise ValueError(f"{key} has shape {tuple(maps[key].shape)}, not {expected}")
    except Exception as error:  # of many kinds: each model of timm checks for itself
        raise InputError(
            f"MODEL.TIMM.NAME {name} does not take images of every size: choose another model. "
            f"timm says for {height}×{width}: {reason_of(error)}"
        ) from error
    backbone.train()


def _check_in_features(cfg: CfgNode, shapes: Mapping[str, ShapeSpec]) -> None:
    """The heads use maps that there are."""
    for key in ("RPN", "ROI_HEADS"):
        unknown = [f for f in cfg.MODEL[key].IN_FEATURES if f not in shapes]
        if unknown and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
            raise InputError(
                f"MODEL.{key}.IN_FEATURES has {', '.join(unknown)}, but MODEL.TIMM.NAME "
                f"{cfg.MODEL.TIMM.NAME} with {cfg.MODEL.BACKBONE.NAME} gives {', '.join(shapes)}"
            )


def _build(cfg: CfgNode, input_shape: Optional[ShapeSpec]) -> TimmBackbone:
    check_timm(cfg)
    check_timm_start(cfg)
    node = cfg.MODEL.TIMM
    in_chans = (input_shape.channels if input_shape else None) or len(cfg.MODEL.PIXEL_MEAN)
    weights = "" if cfg.MODEL.WEIGHTS else node.WEIGHTS
    net = create_model(node.NAME, node.OUT_INDICES, weights, in_chans)
    if weights:
        _warn_of_pixels(cfg, net.pretrained_cfg)
    positions = _feature_names(net, node.OUT_INDICES, node.NAME)
    strides, channels = net.feature_info.reduction(), net.feature_info.channels()
    if node.FROZEN_STAGES:
        freeze_stages(net, node.FROZEN_STAGES, node.NAME)
    if node.NORM == "FrozenBN":
        from timm.layers import freeze_batch_norm_2d

        # Not Detectron2's, which would drop the activations that timm's batch norm contains.
        net = freeze_batch_norm_2d(net)
    backbone = TimmBackbone(
        net,
        positions,
        {name: strides[i] for name, i in positions.items()},
        {name: channels[i] for name, i in positions.items()},
    )
    _try(backbone, in_chans, node.NAME)
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: Optional[ShapeSpec] = None) -> Backbone:
    """The feature maps of MODEL.TIMM as they are.

    Raises:
        InputError: a key of MODEL.TIMM, its weights, or what the heads want of it.
    """
    backbone = _build(cfg, input_shape)
    _check_in_features(cfg, backbone.output_shape())
    return backbone


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: Optional[ShapeSpec] = None) -> Backbone:
    """Detectron2's FPN on MODEL.TIMM: ``p2`` to ``p5`` of strides 4 to 32, and ``p6`` by pooling.

    A model without some of these strides gives fewer levels, and pools the last one once more.

    Raises:
        InputError: see :func:`build_timm_backbone`, or MODEL.FPN.IN_FEATURES.
    """
    bottom_up = _build(cfg, input_shape)
    names = list(cfg.MODEL.FPN.IN_FEATURES) or list(bottom_up.output_shape())
    levels = [int(name[3:]) for name in names if name in bottom_up.output_shape()]
    if len(levels) < len(names) or levels != [*range(levels[0], levels[0] + len(levels))]:
        raise InputError(
            f"MODEL.FPN.IN_FEATURES is {', '.join(names)}, but MODEL.TIMM.NAME "
            f"{cfg.MODEL.TIMM.NAME} gives {', '.join(bottom_up.output_shape())}: take neighbours "
            "among these, or [] for all, and set MODEL.RPN.IN_FEATURES, "
            "MODEL.ROI_HEADS.IN_FEATURES and MODEL.ANCHOR_GENERATOR.SIZES to the levels"
        )
    pool = LastLevelMaxPool()
    pool.in_feature = f"p{levels[-1]}"
    backbone = FPN(
        bottom_up,
        names,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=pool,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    _check_in_features(cfg, backbone.output_shape())
    return backbone
