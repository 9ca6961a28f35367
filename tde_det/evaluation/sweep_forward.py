"""Detections of one model with many chains of adjustments, from one forward pass per image.

Features, boxes and factual logits do not depend on the adjustments. Only scores and what follows
them are computed once for each chain. Masks are computed in one batch, for the distinct boxes of
all chains together.
"""

from typing import Any, Dict, List, Sequence, Tuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..activations import scores_from_logits
from ..adjustments import Adjustments
from ..errors import InputError
from ..inference.run_length_masks import postprocess
from ..modeling.roi_heads import Stage, detect, run_stages


def adjusted_scores(stage: Stage, adjustments: Adjustments) -> List[Tensor]:
    """Scores per image, ``Tensor[N, C+1]``, with other adjustments than the predictor's own."""
    logits, _, x = stage.predictions
    weight, activation = stage.predictor.cls_score.class_weight(), stage.predictor.activation
    scores = scores_from_logits(adjustments(x, logits, weight, activation), activation)
    return list(scores.split([len(p) for p in stage.proposals]))


def look(
    model: GeneralizedRCNN, batched_inputs: List[Dict[str, Any]]
) -> Tuple[Dict[str, Tensor], List[Stage], Tuple[int, int]]:
    """What does not depend on adjustments: features, box stages, size of the one image."""
    images = model.preprocess_image(batched_inputs)
    features = model.backbone(images.tensor)
    if model.proposal_generator is not None:
        proposals, _ = model.proposal_generator(images, features, None)
    else:
        proposals = [entry["proposals"].to(model.device) for entry in batched_inputs]
    return features, run_stages(model.roi_heads, features, proposals), images.image_sizes[0]


def check_heads(model: GeneralizedRCNN) -> None:
    """Raise ``InputError`` unless the ROI heads are those of Mask R-CNN or its cascade."""
    heads = model.roi_heads
    if not isinstance(heads, StandardROIHeads) or (
        heads.mask_on and not isinstance(heads.mask_head, BaseMaskRCNNHead)
    ):
        raise InputError(
            f"MODEL.ROI_HEADS.NAME {type(heads).__name__}: only the heads of Mask R-CNN and "
            "Cascade Mask R-CNN can share a forward pass between chains"
        )


class SweepForward(nn.Module):
    """A detector that gives the detections of an image once for each chain.

    Args:
        model: with box predictors of this package.
        chains: for each chain, the adjustments of every stage.

    Raises:
        InputError: the model's ROI heads are not those of Mask R-CNN or its cascade.
    """

    def __init__(self, model: GeneralizedRCNN, chains: Sequence[Sequence[Adjustments]]):
        super().__init__()
        check_heads(model)
        self.model, self.chains = model, chains
        self.training = model.training  # evaluation puts the mode back to what it was

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[List[Dict[str, Any]]]:
        """By chain, what ``RunLengthMasks`` gives for the one image in ``batched_inputs``."""
        features, stages, size = look(self.model, batched_inputs)
        found = [
            detect(stages, [adjusted_scores(stage, a) for stage, a in zip(stages, chain)])[0]
            for chain in self.chains
        ]
        height = batched_inputs[0].get("height", size[0])
        width = batched_inputs[0].get("width", size[1])
        mask_on = self.model.roi_heads.mask_on
        masks = self._masks(features, found, height, width) if mask_on else {}
        found = [detector_postprocess(instances, height, width) for instances in found]
        for instances in found if mask_on else ():
            instances.pred_masks_rle = [masks[row] for row in instances.mask_rows.tolist()]
            instances.remove("mask_rows")
        return [[{"instances": instances}] for instances in found]

    def _masks(
        self, features: Dict[str, Tensor], found: List[Instances], height: int, width: int
    ) -> Dict[int, Dict[str, Any]]:
        """Masks of all chains' distinct boxes by number; sets that number, ``mask_rows``."""
        heads = self.model.roi_heads
        boxes = torch.cat([instances.pred_boxes.tensor for instances in found])
        classes = torch.cat([instances.pred_classes for instances in found])
        if getattr(getattr(heads.mask_head, "predictor", None), "out_channels", 0) == 1:
            classes = torch.zeros_like(classes)  # one mask for all classes
        keys = torch.cat([boxes, classes.unsqueeze(1).to(boxes.dtype)], dim=1)
        distinct, rows = torch.unique(keys, dim=0, return_inverse=True)
        for instances, mask_rows in zip(found, rows.split([len(instances) for instances in found])):
            instances.mask_rows = mask_rows
        everything = Instances(
            found[0].image_size,
            pred_boxes=Boxes(distinct[:, :4]),
            pred_classes=distinct[:, 4].long(),
        )
        (everything,) = heads.forward_with_given_boxes(features, [everything])
        everything.mask_rows = torch.arange(len(everything), device=boxes.device)
        everything = postprocess(everything, height, width)
        return dict(zip(everything.mask_rows.tolist(), everything.pred_masks_rle))
