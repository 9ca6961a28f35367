"""One image, looked at once: its detections with any adjustments."""

from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from ..adjustments import Adjustments
from ..evaluation.sweep_forward import adjusted_scores, check_heads, look
from ..inference.run_length_masks import postprocess
from ..modeling.roi_heads import detect


class LiveImage:
    """What a model sees in an image before anything is adjusted.

    Args:
        predictor: a :class:`~tde_det.engine.Predictor`.
        image: ``uint8[H, W, 3]`` RGB.

    Raises:
        InputError: the model's heads are not those of Mask R-CNN or its cascade.
    """

    @torch.no_grad()
    def __init__(self, predictor: Any, image: np.ndarray):
        check_heads(predictor.model)
        self.image = image
        self._model = predictor.model
        pixels = image if predictor.input_format == "RGB" else image[..., ::-1]
        resized = predictor.aug.get_transform(pixels).apply_image(np.ascontiguousarray(pixels))
        tensor = torch.as_tensor(resized.astype(np.float32).transpose(2, 0, 1).copy())
        self._features, self._stages, _ = look(self._model, [{"image": tensor}])
        self._masks: Dict[Any, Any] = {}  # by box and class: masks do not depend on adjustments

    @torch.no_grad()
    def detections(
        self, chain: Sequence[Adjustments], score_threshold: float
    ) -> List[Dict[str, Any]]:
        """Detections in the LVIS results format, but with the model's class as ``category_id``.

        Args:
            chain: the adjustments of every stage.
            score_threshold: lowest score.
        """
        scores = [adjusted_scores(stage, a) for stage, a in zip(self._stages, chain)]
        (found,) = detect(self._stages, scores)
        found = found[found.scores >= score_threshold]
        mask_on = self._model.roi_heads.mask_on
        masks = self._masks_of(found) if mask_on else len(found) * [None]
        found.row = torch.arange(len(found))
        # Boxes are scaled in place, and empty ones dropped.
        found = detector_postprocess(found, *self.image.shape[:2])
        boxes = found.pred_boxes.tensor
        boxes[:, 2:] -= boxes[:, :2]
        return [
            {"category_id": label, "score": score, "bbox": box, "segmentation": masks[row]}
            for label, score, box, row in zip(
                *(found.pred_classes.tolist(), found.scores.tolist(), boxes.tolist()),
                found.row.tolist(),
            )
        ]

    def _masks_of(self, found: Instances) -> List[Any]:
        """Masks as run lengths; None for a box that is empty in the image's pixels."""
        classes, boxes = found.pred_classes.tolist(), found.pred_boxes.tensor.tolist()
        keys = [(label, *box) for label, box in zip(classes, boxes)]
        new = [i for i, key in enumerate(keys) if key not in self._masks]
        if new:
            some = Instances(found.image_size, pred_boxes=found.pred_boxes[new])
            some.pred_classes, some.row = found.pred_classes[new], torch.tensor(new)
            (some,) = self._model.roi_heads.forward_with_given_boxes(self._features, [some])
            some = postprocess(some, *self.image.shape[:2])
            self._masks.update(
                (keys[row], mask) for row, mask in zip(some.row.tolist(), some.pred_masks_rle)
            )
        return [self._masks.get(key) for key in keys]
