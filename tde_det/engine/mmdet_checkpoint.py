"""Turns an mmdet 2.x checkpoint, such as those of the authors' own code, into one of ours.

The authors' ``lvis1.0`` code is mmdet 2.4 with another ``convfc_bbox_head.py``. Alike, so that
nothing is to be done: the background is the last class; classes are in the order of the json's
categories; box deltas are (dx, dy, dw, dh) of one class after the other, clamped at log(1000/16);
RoI features are flattened channels first; RoIAlign is aligned and its sampling adaptive; the finest
level takes boxes below 112 pixels; anchors are centred on multiples of the stride, in the order
0.5, 1, 2 of height/width, with one (sigmoid) objectness channel each; p6 is p5 subsampled by max
pooling; batch norm is frozen, with ε = 1e-5; K = 2, τ = 16, γ = 1/32, α = 1.5.

Different, and put right by the config keys of :func:`mmdet_conventions`, which the converted
weights need: pixels are RGB with torchvision's mean and standard deviation; the ResNet has its
strides in the 3×3 convolutions; the targets of the third cascade stage are divided by 0.033 and
0.067, whose inverses are not Detectron2's 30 and 15.

Different, and not carried over: mmdet averages the masks of a mask head per cascade stage,
Detectron2 has a single head. We take the last that works on its own: the third of
``CascadeRoIHead``, but the first of ``HybridTaskCascadeRoIHead`` (the authors' config), whose later
ones add features of the one before through ``conv_res``. Boxes and scores do not depend on it. The
authors' code applies softmax to probabilities a second time, so their score thresholds mean
something else. mmdet's image resizing has no anti-aliasing.

``causal_embed`` becomes ``feature_mean``, whose direction alone counts. The authors' code averages
boxes of label > 0 into it: not class 0, but the background, which is most of them.
tools/calibrate.py measures the mean of the foreground on training data.
"""

import re
from typing import Any, Dict, List, Mapping, Tuple

import torch
from torch import Tensor

from ..errors import InputError
from ..weight_files import read_weights

BOX_TARGET_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))

# mmdet's keys, as patterns, and ours; <1+2> is then added up.
RENAMED = [
    (r"backbone\.(conv1\..+)", r"backbone.bottom_up.stem.\1"),
    (r"backbone\.bn1\.(.+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (
        r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.(.+)",
        r"backbone.bottom_up.res<\1+1>.\2.conv\3.norm.\4",
    ),
    (
        r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.(.+)",
        r"backbone.bottom_up.res<\1+1>.\2.shortcut.norm.\3",
    ),
    (
        r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.(.+)",
        r"backbone.bottom_up.res<\1+1>.\2.shortcut.\3",
    ),
    (r"backbone\.layer(\d)\.(\d+)\.(conv\d\..+)", r"backbone.bottom_up.res<\1+1>.\2.\3"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_lateral<\1+2>.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"backbone.fpn_output<\1+2>.\2"),
    (r"rpn_head\.rpn_conv\.(.+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn_head\.rpn_cls\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn_head\.rpn_reg\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_head\.bbox_head\.(\d\.)?shared_fcs\.(\d)\.(.+)", r"roi_heads.box_head.\1fc<\2+1>.\3"),
    (r"roi_head\.bbox_head\.(\d\.)?fc_reg\.(.+)", r"roi_heads.box_predictor.\1bbox_pred.\2"),
    (r"roi_head\.bbox_head\.(\d\.)?fc_cls", r"roi_heads.box_predictor.\1cls_score.weight"),
    (r"roi_head\.bbox_head\.(\d\.)?fc_cls\.(.+)", r"roi_heads.box_predictor.\1cls_score.\2"),
    (
        r"roi_head\.bbox_head\.(\d\.)?causal_embed",
        r"roi_heads.box_predictor.\1adjustments.tde.feature_mean",
    ),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(.+)", r"roi_heads.mask_head.mask_fcn<\1+1>.\2"),
    (r"roi_head\.mask_head\.upsample\.(.+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_head\.mask_head\.conv_logits\.(.+)", r"roi_heads.mask_head.predictor.\1"),
]


def mmdet_conventions(cascade: bool) -> List[Any]:
    """Config keys and values that go with every converted checkpoint.

    Args:
        cascade: whether the model has several box heads.
    """
    weights = tuple(tuple(1 / std for std in stage) for stage in BOX_TARGET_STDS)
    return [
        *("INPUT.FORMAT", "RGB"),
        *("MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
        *("MODEL.PIXEL_STD", [58.395, 57.12, 57.375]),
        *("MODEL.RESNETS.STRIDE_IN_1X1", False),
        *("MODEL.RESNETS.NORM", "FrozenBN"),
        *("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0),
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"),
        *(
            ("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", weights)
            if cascade
            else ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", weights[0])
        ),
    ]


def read_mmdet_checkpoint(path: str) -> Dict[str, Tensor]:
    """The weights in an mmdet checkpoint file.

    Raises:
        InputError: it is none.
    """
    try:
        checkpoint = read_weights(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # torch.load has no error of its own for what it cannot read
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    if "backbone.conv1.weight" not in state:
        raise InputError(
            f"{path} has no key backbone.conv1.weight: it is no checkpoint of an mmdet 2.x "
            "detector with a ResNet"
        )
    return state


def _usable_mask_head(keys: Mapping[str, Any]) -> str:
    """Prefix of the last mask head that needs no features of another."""
    heads = {m[0] for m in (re.match(r"roi_head\.mask_head\.\d\.", key) for key in keys) if m}
    alone = [head for head in heads if not any(k.startswith(head + "conv_res.") for k in keys)]
    return max(alone, default="roi_head.mask_head.")


def _rename(key: str) -> str:
    """Our name of an mmdet key; "" if there is none."""
    for pattern, ours in RENAMED:
        match = re.fullmatch(pattern, key)
        if match:
            name = match.expand(ours)
            return re.sub(r"<(\d)\+(\d)>", lambda m: str(int(m[1]) + int(m[2])), name)
    return ""


def convert_mmdet_checkpoint(
    state: Mapping[str, Tensor], model: torch.nn.Module
) -> Tuple[Dict[str, Tensor], List[str]]:
    """Weights for ``model`` out of those of an mmdet detector.

    Args:
        state: from :func:`read_mmdet_checkpoint`.
        model: built of a config with :func:`mmdet_conventions`; it is not changed.

    Returns:
        A state dict for the model, and the keys of ``state`` that are not in it.

    Raises:
        InputError: a key has no place in the model, or another shape there, or is missing.
    """
    expected = model.state_dict()
    mask_head = _usable_mask_head(state)
    converted: Dict[str, Tensor] = {}
    left_out = []
    for key, value in state.items():
        if key.endswith(".num_batches_tracked"):
            left_out.append(key)
            continue
        if key.startswith("roi_head.mask_head.") and not key.startswith(mask_head):
            left_out.append(key)
            continue
        name = _rename(key.replace(mask_head, "roi_head.mask_head.", 1))
        if name not in expected:
            raise InputError(
                f"{key} of the checkpoint has no place in the model of the config"
                + (f" (it would be {name})" if name else "")
                + ": the architectures differ. Name the config file that matches (backbone, "
                "cascade or not, MODEL.TDE.CLASSIFIER, MODEL.MASK_ON)."
            )
        if name.endswith("feature_mean"):
            value = value.reshape(-1)
        if value.shape != expected[name].shape:
            raise InputError(
                f"{key} of the checkpoint has shape {tuple(value.shape)}, but {name} of the "
                f"config's model {tuple(expected[name].shape)}: change the config to match, "
                "such as MODEL.ROI_HEADS.NUM_CLASSES, or take another"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"{key} of the checkpoint is not finite: its training has diverged")
        converted[name] = value.to(expected[name].dtype)
    for name, value in expected.items():
        if name in converted:
            continue
        if ".adjustments." in name and not name.endswith("feature_mean"):
            converted[name] = value  # options of the config
        else:
            raise InputError(
                f"the checkpoint has nothing for {name} of the config's model: the architectures "
                "differ. Name the config file that matches."
            )
    return converted, left_out
