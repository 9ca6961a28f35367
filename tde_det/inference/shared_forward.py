"""Detections of one model under many settings of its box classifier, from one forward pass.

Backbone, RPN and box heads do not depend on the settings: with class-agnostic regression not even
the boxes from which a cascade's later stages start. Only the classifiers and what follows run once
for each setting. Of the detections' masks each is computed once, whichever settings ask for it.

Everything equals what the model gives with that setting alone, to the bit. That needs one
precaution: libraries choose among implementations of a convolution by the number of boxes, and
these round differently. So masks for n boxes are taken from a batch of another size only after both
sizes have been seen to give the very same numbers.
"""

import copy
import itertools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import InputError
from .masks import encode_masks

_MULTIPLE = 8  # of boxes in a batch of masks, so that few sizes have to be compared


class Replay(nn.Module):
    """Another module's outputs, in the order of its calls: computed the first time, then repeated.

    Args:
        module: whose inputs are the same each time.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.forget()

    def forget(self) -> None:
        """Compute again from now on."""
        self._outputs: List[Any] = []
        self.rewind()

    def rewind(self) -> None:
        """Start again with the first call."""
        self._calls = 0

    def forward(self, *inputs: Any) -> Any:
        if self._calls == len(self._outputs):
            self._outputs.append(self.module(*inputs))
        self._calls += 1
        return self._outputs[self._calls - 1]


def _with_own_children(module: nn.Module) -> Any:
    """A copy that shares all with the module, but can have other children."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


class BatchSizes:
    """Which batch sizes have been seen to give the same numbers, sample by sample."""

    def __init__(self) -> None:
        self._group: Dict[int, int] = {}

    def are_equal(self, a: int, b: int) -> bool:
        return a in self._group and self._group[a] == self._group.get(b)

    def learn(self, a: int, b: int) -> None:
        """Both gave the same for some samples."""
        old, new = self._group.get(a, a), self._group.get(b, b)
        self._group.update({a: new, b: new})
        self._group.update({n: new for n, group in self._group.items() if group == old})


class SharedHeads(nn.Module):
    """ROI heads that give the detections of an image once for each of several box predictors.

    Args:
        heads: of the model, which stay as they are.
        predictors: each in the place of ``heads.box_predictor``, with the same box regression.

    Raises:
        InputError: the heads are of another kind than those of Mask R-CNN and its cascade.
    """

    def __init__(self, heads: nn.Module, predictors: Sequence[nn.Module]):
        super().__init__()
        if not isinstance(heads, StandardROIHeads) or (
            heads.mask_on
            and not (isinstance(heads.mask_head, BaseMaskRCNNHead) and heads.mask_pooler)
        ):
            raise InputError(
                f"MODEL.ROI_HEADS.NAME {type(heads).__name__}: only the heads of Mask R-CNN and "
                "Cascade Mask R-CNN can share a forward pass between settings"
            )
        self._heads = _with_own_children(heads)
        self._heads.box_pooler = Replay(heads.box_pooler)
        self._replays = [self._heads.box_pooler]
        self._heads.box_head = self._replayed(heads.box_head)
        boxes = [p.bbox_pred for p in _stages(heads.box_predictor)]
        deltas = [self._replayed(module) for module in boxes]
        for predictor in predictors:
            for stage, shared in zip(_stages(predictor), deltas):
                stage.bbox_pred = shared
        self._predictors = nn.ModuleList(predictors)
        self._sizes = BatchSizes()

    def _replayed(self, module: nn.Module) -> nn.Module:
        """The module, or each of a list's, to be run once for an image."""
        if isinstance(module, nn.ModuleList):
            return nn.ModuleList(map(self._replayed, module))
        self._replays.append(Replay(module))
        return self._replays[-1]

    def forward(
        self, images: Any, features: Dict[str, Tensor], proposals: List[Instances], _: None = None
    ) -> Tuple[List[Instances], Dict[str, Tensor]]:
        """Detections of the one image by every predictor, with masks as in :meth:`_add_masks`."""
        del images
        found = []
        for replay in self._replays:
            replay.forget()
        for predictor in self._predictors:
            for replay in self._replays:
                replay.rewind()
            self._heads.box_predictor = predictor
            found += self._heads._forward_box(features, proposals)
        for replay in self._replays:
            replay.forget()
        if self._heads.mask_on:
            self._add_masks(features, found)
        return found, {}

    def _add_masks(self, features: Dict[str, Tensor], found: List[Instances]) -> None:
        """Add ``mask_probs``, Detectron2's ``pred_masks``, and ``mask_keys``, one for each mask."""
        layers = self._heads.mask_head.layers
        counts = [len(instances) for instances in found]
        boxes, owners = torch.unique(
            torch.cat([i.pred_boxes.tensor for i in found]), dim=0, return_inverse=True
        )
        classes = torch.cat([i.pred_classes for i in found])
        pooled = self._heads.mask_pooler(
            [features[f] for f in self._heads.mask_in_features], [Boxes(boxes)]
        )
        size, logits, keys = _distinct_logits(layers, pooled, owners, classes, max(counts))
        for instances, own, own_class, key in zip(
            found, owners.split(counts), classes.split(counts), keys.split(counts)
        ):
            own_logits = logits[key]
            if len(own) and not self._sizes.are_equal(len(own), size):
                together = own_logits
                own_logits = _of_class(layers(pooled[own]), own_class)
                if torch.equal(own_logits, together):
                    self._sizes.learn(len(own), size)
            # In the same shape as Detectron2: the last bit may depend on the place in a tensor.
            instances.mask_probs = own_logits[:, None].sigmoid()
            instances.mask_keys = key


def _stages(module: nn.Module) -> List[Any]:
    """The box heads or box predictors of a cascade's stages; of a plain model the only one."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Of ``Tensor[N, C, M, M]`` each one's class, ``Tensor[N, M, M]``; C = 1 stands for all."""
    own = classes if logits.shape[1] > 1 else torch.zeros_like(classes)
    return logits[torch.arange(len(logits), device=own.device), own]


def _distinct_logits(
    layers: Callable[[Tensor], Tensor], pooled: Tensor, owners: Tensor, classes: Tensor, most: int
) -> Tuple[int, Tensor, Tensor]:
    """Mask logits of every box and, where they differ by class, class that occurs, each once.

    Args:
        layers: of the mask head.
        pooled: ``Tensor[B, ...]``, mask features of the distinct boxes.
        owners, classes: ``Tensor[D]``, each detection's box, in [0, B), and class.
        most: boxes that may be processed at once.

    Returns:
        how many boxes were processed at once; logits ``Tensor[P, M, M]``; and ``Tensor[D]``, which
        of them is each detection's.
    """
    if not len(pooled):
        return 0, pooled.new_zeros(0, 1, 1), owners
    batches = -(-len(pooled) // most)
    size = -(-len(pooled) // (batches * _MULTIPLE)) * _MULTIPLE
    rows = torch.arange(batches * size, device=pooled.device) % len(pooled)
    logits = []
    for i, row in enumerate(rows.split(size)):
        output = layers(pooled[row])
        if i == 0:
            kinds = classes if output.shape[1] > 1 else torch.zeros_like(classes)
            pairs, keys = torch.unique(
                torch.stack([owners, kinds], dim=1), dim=0, return_inverse=True
            )
        own = pairs[torch.div(pairs[:, 0], size, rounding_mode="floor") == i]
        logits.append(output[own[:, 0] - i * size, own[:, 1]])
    return size, torch.cat(logits), keys


class SharedForward(nn.Module):
    """A model that answers an image once for each of several box predictors.

    Args:
        model: stays as it is.
        predictors: see :class:`SharedHeads`.

    Raises:
        InputError: see :class:`SharedHeads`.
    """

    def __init__(self, model: GeneralizedRCNN, predictors: Sequence[nn.Module]):
        super().__init__()
        self._model = _with_own_children(model)
        self._model.roi_heads = SharedHeads(model.roi_heads, predictors)
        self.training = model.training  # evaluation puts the mode back to what it was

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[List[Dict[str, Any]]]:
        """By predictor, what the model with it gives for the one image in ``batched_inputs``.

        Masks are in ``pred_masks_rle``, as :class:`~.run_length_masks.RunLengthMasks` has them but
        with ``counts`` in bytes.
        """
        results = self._model.inference(batched_inputs, do_postprocess=False)
        outputs = GeneralizedRCNN._postprocess(
            results, batched_inputs * len(results), [r.image_size for r in results]
        )
        if outputs[0]["instances"].has("mask_keys"):
            _encode_masks_once([output["instances"] for output in outputs])
        return [[output] for output in outputs]


def _encode_masks_once(found: List[Instances]) -> None:
    """Put ``pred_masks_rle`` in the place of ``mask_probs`` and ``mask_keys``, all of one image."""
    masks = torch.cat([instances.mask_probs[:, 0] for instances in found])
    boxes = torch.cat([instances.pred_boxes.tensor for instances in found])
    keys = torch.cat([instances.mask_keys for instances in found]).cpu().numpy()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    like = first[inverse]
    differs = (masks != masks[torch.from_numpy(like)]).flatten(1).any(dim=1).cpu().numpy()
    like[differs] = np.flatnonzero(differs)
    rows, inverse = np.unique(like, return_inverse=True)
    chosen = torch.from_numpy(rows)
    encoded = encode_masks(masks[chosen], boxes[chosen], found[0].image_size)
    encoded = [{**rle, "counts": rle["counts"].encode()} for rle in encoded]
    rles = (encoded[i] for i in inverse.tolist())
    for instances in found:
        instances.pred_masks_rle = list(itertools.islice(rles, len(instances)))
        instances.remove("mask_probs")
        instances.remove("mask_keys")
