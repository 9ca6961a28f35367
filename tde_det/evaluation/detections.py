"""Detections as columns: a million of them are a few arrays, not a million dicts."""

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode, Instances

from .stored_masks import StoredMasks


@dataclasses.dataclass
class Detections:
    """N detections, in the order of their results file.

    Attributes:
        image_ids: ``[N]``, as in the annotations.
        category_ids, scores: ``[N]``
        boxes: ``[N, 4]``, x, y, width and height in pixels; None if there are none.
        masks: ``[N]``, the counts of compressed RLEs, which are strings, or None for a detection
            without a mask; on disk or in memory; None if there are none.
        mask_sizes: ``[N, 2]``, height and width that the masks are of; None without masks.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: Optional[np.ndarray] = None
    masks: Union[np.ndarray, StoredMasks, None] = None
    mask_sizes: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> "Detections":
        """The detections at a slice or an array of indices."""
        columns: Any = (None if c is None else c[rows] for c in vars(self).values())
        return Detections(*columns)

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """Join detections that have the same columns."""
        if not parts:
            ids, masks = np.zeros(0, np.int64), np.zeros(0, object)
            return cls(ids, ids, np.zeros(0), np.zeros((0, 4)), masks, np.zeros((0, 2), np.int32))
        columns = zip(*(vars(part).values() for part in parts))
        joined: Any = (None if c[0] is None else np.concatenate(c) for c in columns)
        return cls(*joined)

    @classmethod
    def from_instances(cls, instances: Instances, image_id: Any) -> "Detections":
        """What a model outputs for an image, with classes for category ids.

        Masks come from ``pred_masks`` (``bool[N, H, W]``) or, if there, ``pred_masks_rle`` (N
        dicts ``{"size": [H, W], "counts": str}``). Values are those of Detectron2's
        ``instances_to_coco_json``.
        """
        instances = instances.to("cpu")
        masks = sizes = None
        if instances.has("pred_masks_rle") or instances.has("pred_masks"):
            if instances.has("pred_masks_rle"):
                rles = instances.pred_masks_rle
            else:
                arrays = (np.asfortranarray(m.numpy(), np.uint8) for m in instances.pred_masks)
                rles = [mask_util.encode(array) for array in arrays]
            masks = np.array([as_string(rle["counts"]) for rle in rles], object)
            sizes = np.array([rle["size"] for rle in rles], np.int32).reshape(-1, 2)
        return cls(
            np.full(len(instances), image_id),
            instances.pred_classes.numpy(),
            instances.scores.numpy(),
            BoxMode.convert(
                instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
            ),
            masks,
            sizes,
        )

    def without_mask(self) -> np.ndarray:
        """The rows that have no mask."""
        if isinstance(self.masks, StoredMasks):
            return np.zeros(0, int)
        masks = np.full(len(self), None) if self.masks is None else self.masks
        return np.flatnonzero([mask is None for mask in masks])

    def rles(self) -> List[Any]:
        """The masks as dicts, as pycocotools takes them."""
        assert self.masks is not None and self.mask_sizes is not None
        return [{"size": s, "counts": c} for s, c in zip(self.mask_sizes.tolist(), self.masks)]

    def to_dicts(self) -> List[Dict[str, Any]]:
        """In the format of the LVIS challenge."""
        columns = (self.image_ids.tolist(), self.category_ids.tolist(), self.scores.tolist())
        rows = [dict(zip(("image_id", "category_id", "score"), values)) for values in zip(*columns)]
        if self.boxes is not None:
            for row, box in zip(rows, self.boxes.tolist()):
                row["bbox"] = box
        if self.masks is not None:
            for row, rle in zip(rows, self.rles()):
                if rle["counts"] is not None:
                    row["segmentation"] = rle
        return rows


def as_string(counts: Any) -> str:
    """The counts of an RLE, which pycocotools gives as bytes."""
    return counts.decode() if isinstance(counts, bytes) else counts
