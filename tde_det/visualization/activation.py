"""Where in a box the evidence for a class lies, with and without the model's adjustments."""

from typing import Any, Dict, List, NamedTuple, Tuple

import cv2
import numpy as np
import torch
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..modeling import box_predictors
from .draw import Categories


def grad_cam(features: Tensor, scores: Tensor) -> Tensor:
    """Grad-CAM: max(0, Σ_c a_c·A_c), a_c the mean over places of ∂score/∂A_c.

    Source: Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391. The maps are not scaled,
    as libraries do: those of two scores of one box are to be compared.

    Args:
        features: ``Tensor[N, D, H, W]`` A, which the scores were computed from, row by row.
        scores: ``Tensor[N]``.

    Returns:
        ``Tensor[N, H, W]``, not negative.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), features, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * features).sum(1).relu().detach()


class Evidence(NamedTuple):
    """The evidence for detections of one image, by the last box stage.

    Attributes:
        factual, adjusted: ``Tensor[N, H, W]`` Grad-CAM over the box, of the class's logit less the
            mean logit of all foreground classes.
        probabilities: ``Tensor[N, 2]`` of the class, factual and adjusted.
    """

    factual: Tensor
    adjusted: Tensor
    probabilities: Tensor


def evidence(model: Any, batch: List[Dict[str, Any]], boxes: Tensor, classes: Tensor) -> Evidence:
    """Look for the evidence for classes in boxes of one image.

    Args:
        model: a detector of this package, in evaluation mode.
        batch: of one image, as the model takes it.
        boxes: ``Tensor[N, 4]`` x1, y1, x2, y2 in pixels of the model's input.
        classes: ``int64[N]``.
    """
    heads, predictor = model.roi_heads, box_predictors(model)[-1]
    head = heads.box_head[-1] if isinstance(heads, CascadeROIHeads) else heads.box_head
    with torch.no_grad():
        images = model.preprocess_image(batch)
        levels = model.backbone(images.tensor)
        pooled = heads.box_pooler([levels[name] for name in heads.box_in_features], [Boxes(boxes)])
    pooled.requires_grad_()
    with torch.enable_grad():
        logits, _, x = predictor(head(pooled))
        weight = predictor.cls_score.class_weight()
        adjusted = predictor.adjustments(x, logits, weight, predictor.activation)
        maps, probabilities = [], []
        for side in (logits, adjusted):
            chosen = side.gather(1, classes[:, None])[:, 0]
            maps.append(grad_cam(pooled, chosen - side[:, :-1].mean(1)))
            probabilities.append(side.softmax(1).gather(1, classes[:, None])[:, 0].detach())
    return Evidence(maps[0], maps[1], torch.stack(probabilities, 1))


def _heat(crop: np.ndarray, activation: np.ndarray, largest: float) -> np.ndarray:
    """A crop under a heat map of values in [0, largest], the stronger the less transparent."""
    size = crop.shape[1::-1]
    smooth = cv2.resize(activation, size, interpolation=cv2.INTER_CUBIC)
    smooth = (smooth / max(largest, 1e-12)).clip(0, 1)[..., None]
    colors = cv2.applyColorMap((255 * smooth).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return (crop + 0.7 * smooth * (colors.astype(float) - crop)).astype(np.uint8)


class Example(NamedTuple):
    """One detection of a sheet.

    Attributes:
        image: ``uint8[H, W, 3]`` RGB.
        box: x1, y1, x2, y2 in its pixels.
        category_id: the detection's class.
        factual, adjusted: ``float[H', W']``: see :class:`Evidence`.
        probabilities: factual and adjusted.
    """

    image: np.ndarray
    box: Tuple[float, float, float, float]
    category_id: Any
    factual: np.ndarray
    adjusted: np.ndarray
    probabilities: Tuple[float, float]

    def change(self) -> float:
        """How far the adjustment changes the class's probability, in [0, 1]."""
        return abs(self.probabilities[1] - self.probabilities[0])


def explain_image(predictor: Any, image: np.ndarray, score_threshold: float) -> List[Example]:
    """The evidence for every detection of an image with a score above a threshold.

    Args:
        predictor: a :class:`~tde_det.engine.Predictor`.
        image: ``uint8[H, W, 3]`` BGR.

    Returns:
        examples whose ``category_id`` is the model's class.
    """
    found = predictor(image)["instances"]
    found = found[found.scores >= score_threshold]
    if not len(found):
        return []
    transform = predictor.aug.get_transform(image)
    pixels = image[..., ::-1] if predictor.input_format == "RGB" else image
    resized = np.ascontiguousarray(transform.apply_image(pixels).transpose(2, 0, 1), np.float32)
    boxes = found.pred_boxes.tensor
    inputs = torch.as_tensor(transform.apply_box(boxes.cpu().numpy())).to(boxes)
    batch = [{"image": torch.as_tensor(resized)}]
    factual, adjusted, probabilities = evidence(predictor.model, batch, inputs, found.pred_classes)
    return [
        Example(image[..., ::-1], tuple(box), label, before, after, tuple(pair))
        for box, label, before, after, pair in zip(
            boxes.tolist(),
            found.pred_classes.tolist(),
            factual.cpu().numpy(),
            adjusted.cpu().numpy(),
            probabilities.tolist(),
        )
    ]


def draw_sheet(examples: List[Example], categories: Categories, adjustment: str) -> Figure:
    """A row a detection: the box in its image, the factual evidence, the adjusted.

    Both maps of a row have one scale, so their colours can be compared.

    Args:
        categories: by id, with ``name`` and ``frequency``.
        adjustment: the title of the third column.
    """
    figure = Figure((7.5, 2.5 * len(examples)), dpi=120, layout="constrained")
    for row, example in zip(figure.subplots(len(examples), 3, squeeze=False), examples):
        x0, y0, x1, y1 = example.box
        height, width = example.image.shape[:2]
        rows = slice(max(0, int(y0)), max(int(y0) + 1, min(height, int(np.ceil(y1)))))
        columns = slice(max(0, int(x0)), max(int(x0) + 1, min(width, int(np.ceil(x1)))))
        crop = example.image[rows, columns]
        scale = max(1.0, 240 / max(crop.shape[:2]))
        size = [max(1, round(scale * n)) for n in crop.shape[1::-1]]
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
        category = categories[example.category_id]
        row[0].imshow(example.image, interpolation="bicubic")
        frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="yellow", linewidth=1.5)
        row[0].add_patch(frame)
        name = str(category["name"]).replace("_", " ")
        row[0].set_title(f"{name} ({category.get('frequency', '?')})", size=9, parse_math=False)
        largest = float(max(example.factual.max(), example.adjusted.max()))
        for axes, heat, title, probability in zip(
            row[1:],
            (example.factual, example.adjusted),
            ("factual", adjustment),
            example.probabilities,
        ):
            axes.imshow(_heat(crop, heat, largest))
            axes.set_title(f"{title}: {100 * probability:.0f}%", size=9)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return figure
