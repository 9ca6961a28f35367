"""Detectron2's dataset mapper, with an answer to image files that cannot be read."""

import logging
import math
from typing import Any, Dict, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, build_augmentation

from ..errors import InputError

logger = logging.getLogger(__name__)


def check_jitter(cfg: CfgNode) -> None:
    """Check ``INPUT.LSJ``, if it is enabled.

    Raises:
        InputError: naming the key.
    """
    node = cfg.INPUT.LSJ
    if not node.ENABLED:
        return
    if not 0 < node.MIN_SCALE <= node.MAX_SCALE < math.inf:
        raise InputError(
            "INPUT.LSJ: 0 < MIN_SCALE <= MAX_SCALE must hold, got MIN_SCALE "
            f"{node.MIN_SCALE} and MAX_SCALE {node.MAX_SCALE}"
        )
    if node.MIN_SCALE * node.SIZE < 8:  # less, and a long image has a side of no pixel
        raise InputError(
            f"INPUT.LSJ: SIZE is {node.SIZE} pixels and MIN_SCALE {node.MIN_SCALE}; their product "
            "must be at least 8"
        )
    if cfg.INPUT.CROP.ENABLED:
        raise InputError("INPUT.LSJ and INPUT.CROP both crop: set one ENABLED to False")


class TolerantMapper(DatasetMapper):
    """In training a damaged image is skipped with a warning, in inference it is an error.

    Losing one of 100,000 images harms a training less than stopping it overnight. An evaluation
    without one of its images would be wrong, and so would a training whose files are not there.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        """Detectron2's, with ``INPUT.LSJ`` in training."""
        arguments = super().from_config(cfg, is_train)
        if is_train and cfg.INPUT.LSJ.ENABLED:
            check_jitter(cfg)
            node = cfg.INPUT.LSJ
            _, *flip = build_augmentation(cfg, is_train)
            arguments["augmentations"] = [
                T.ResizeScale(node.MIN_SCALE, node.MAX_SCALE, node.SIZE, node.SIZE),
                # By default masks are padded with 255, which is foreground.
                T.FixedSizeCrop((node.SIZE, node.SIZE), seg_pad_value=0),
                *flip,
            ]
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON  # as for INPUT.CROP
        return arguments

    def __call__(self, dataset_dict: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        path = dataset_dict["file_name"]
        try:
            return super().__call__(dataset_dict)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist, though the annotations list it") from None
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "shapely":
                raise
            raise InputError("cropping polygons (INPUT.LSJ) needs: pip install shapely") from error
        except (OSError, SizeMismatchError, ValueError) as error:
            if isinstance(error, ValueError) and "must be > 0" not in str(error):
                raise  # unlike Pillow's, of an image so long that, resized, it has no pixel
            if not self.is_train:
                raise InputError(f"{path} cannot be used: {error}") from error
            logger.warning("skipped %s: %s", path, error)
            return None  # Detectron2 draws another image
