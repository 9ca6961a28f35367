"""Values of Detectron2's own keys, most of which it checks late or not at all."""

import contextlib
import functools
import re
import traceback
from typing import Any, Dict, Iterator, List, Tuple

from detectron2.config import CfgNode, get_cfg

from ..config import add_tde_config
from ..errors import InputError

AT_LEAST = {
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TEST": 0,  # not resized
    "INPUT.MAX_SIZE_TEST": 1,
    "INPUT.MAX_SIZE_TRAIN": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 1,
    "SOLVER.MOMENTUM": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "TEST.DETECTIONS_PER_IMAGE": -1,  # all
    "TEST.EVAL_PERIOD": 0,
}
FRACTIONS = (
    *("MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    *("MODEL.RPN.NMS_THRESH", "MODEL.RPN.POSITIVE_FRACTION"),
)
ONE_OF: Dict[str, Tuple[str, ...]] = {
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"),
}


def _get(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def check_detectron2_values(cfg: CfgNode) -> None:
    """Find values that no training or evaluation can use, before either starts.

    Raises:
        InputError: naming the key.
    """
    for key, low in AT_LEAST.items():
        if not _get(cfg, key) >= low:  # NaN too
            raise InputError(f"{key} must be at least {low}, got {_get(cfg, key)}")
    for key in FRACTIONS:
        if not 0 <= _get(cfg, key) <= 1:
            raise InputError(f"{key} must be in [0, 1], got {_get(cfg, key)}")
    for key, known in ONE_OF.items():
        if _get(cfg, key) not in known:
            raise InputError(f"{key} must be one of {', '.join(known)}, got {_get(cfg, key)!r}")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise InputError(f"INPUT.MIN_SIZE_TRAIN must be a list of sizes from 1, got {sizes}")
    if not all(isinstance(step, int) for step in cfg.SOLVER.STEPS):
        raise InputError(f"SOLVER.STEPS must be a list of iterations, got {cfg.SOLVER.STEPS}")


def _suspects(cfg: CfgNode, section: str, said: str) -> List[str]:
    """Keys of a section, with values other than the default, that an error mentions."""
    words = {word.strip(".") for word in re.findall(r"[\w.-]+", said)}
    defaults = get_cfg()
    add_tde_config(defaults)
    found = []

    def search(node: CfgNode, default: CfgNode, name: str) -> None:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                search(value, default[key], f"{name}.{key}")
            elif value != default[key]:
                parts = value if isinstance(value, (list, tuple)) else [value]
                if any(str(part) in words for part in parts):
                    found.append(f"{name}.{key} {value!r}")

    search(_get(cfg, section), _get(defaults, section), section)
    return found


@contextlib.contextmanager
def errors_name_section(cfg: CfgNode, section: str) -> Iterator[None]:
    """Turn what Detectron2 raises for values that do not fit into one line.

    Args:
        section: of the config, that what is built within reads.

    Raises:
        InputError: naming the key, if Detectron2 mentions its value, or else the section, and what
            Detectron2 says or, if it says nothing, asserts.
    """
    try:
        yield
    except InputError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        said = " ".join(str(error).split()) or traceback.extract_tb(error.__traceback__)[-1].line
        where = " or ".join(_suspects(cfg, section, said or "")) or f"a value in {section}"
        reason = f"{type(error).__name__}: {said}"
        raise InputError(f"config: {where} does not fit ({reason})") from error
