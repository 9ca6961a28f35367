"""A detector that outputs run-length encoded masks."""

from typing import Any, Dict, List

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torch import nn

from ..data.rle import encode_masks


def postprocess(instances: Instances, height: int, width: int) -> Instances:
    """Detectron2's ``detector_postprocess``, with ``pred_masks_rle`` in place of ``pred_masks``.

    These are ``{"size": [height, width], "counts": str}`` for each instance.
    """
    # Under this name, Detectron2 selects rows of it and pastes nothing.
    instances.mask_probs = instances.pred_masks
    instances.remove("pred_masks")
    instances = detector_postprocess(instances, height, width)
    instances.pred_masks_rle = encode_masks(
        instances.mask_probs[:, 0], instances.pred_boxes.tensor, instances.image_size
    )
    instances.remove("mask_probs")
    return instances


class RunLengthMasks(nn.Module):
    """Wraps a detector so that masks come as :func:`postprocess` encodes them, for evaluation.

    Args:
        model: in inference mode; its mask head gives one M×M mask per detection.
    """

    def __init__(self, model: GeneralizedRCNN):
        super().__init__()
        self.model = model
        self.training = model.training  # Detectron2's evaluation restores this mode at the end

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        outputs = []
        results = self.model.inference(batched_inputs, do_postprocess=False)
        for entry, instances in zip(batched_inputs, results):
            height, width = instances.image_size
            size = entry.get("height", height), entry.get("width", width)
            outputs.append({"instances": postprocess(instances, *size)})
        return outputs
