"""A detector that answers with run-length encoded masks."""

from typing import Any, Dict, List

from detectron2.modeling import GeneralizedRCNN
from torch import nn

from .masks import encode_masks


class RunLengthMasks(nn.Module):
    """Gives the detections of ``model``, with masks as run lengths instead of full-size tensors.

    For evaluation, which would encode them anyway: see :mod:`tde_det.inference.masks`.

    Args:
        model: in inference mode; its mask head gives one M×M mask per detection.
    """

    def __init__(self, model: GeneralizedRCNN):
        super().__init__()
        self.model = model
        self.training = model.training  # evaluation puts the mode back to what it was

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """As the model's own, but ``instances`` have the field ``pred_masks_rle``, a list of
        ``{"size": [height, width], "counts": str}``, in place of ``pred_masks``."""
        results = self.model.inference(batched_inputs, do_postprocess=False)
        for instances in results:
            # Under another name, so that postprocessing selects them and pastes nothing.
            instances.mask_probs = instances.pred_masks
            instances.remove("pred_masks")
        sizes = [instances.image_size for instances in results]
        outputs = GeneralizedRCNN._postprocess(results, batched_inputs, sizes)
        for instances in (output["instances"] for output in outputs):
            instances.pred_masks_rle = encode_masks(
                instances.mask_probs[:, 0], instances.pred_boxes.tensor, instances.image_size
            )
            instances.remove("mask_probs")
        return outputs
