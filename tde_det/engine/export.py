"""Export a detector as TorchScript or ONNX, and compare what has been exported with the model."""

import os
import warnings
from typing import Any, Callable, Dict, List

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor

from ..errors import InputError

FORMATS = ("torchscript", "onnx")
TOLERANCE = 1e-4
OPSET = 17  # RoIAlign is aligned as Detectron2's from 16 on

Detections = Dict[str, Tensor]


def check_format(kind: str) -> None:
    """Find out now whether what a format needs is installed.

    Raises:
        InputError: it is not.
    """
    if kind == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise InputError(f"--format onnx: {error}; pip install -e '.[export]'") from error


def _detect(model: GeneralizedRCNN, inputs: List[Dict[str, Tensor]]) -> Detections:
    return model.inference(inputs, do_postprocess=False)[0].get_fields()


def make_traceable(model: Any, image: Tensor) -> TracingAdapter:
    """Wrap a model: an image, ``Tensor[3, H, W]``, to a tuple of tensors, as its schema names them.

    Raises:
        InputError: it is a model of another kind, or detects nothing in the image.
    """
    if not isinstance(model, GeneralizedRCNN) or model.proposal_generator is None:
        raise InputError(
            "only a GeneralizedRCNN with a proposal generator of its own can be exported: see "
            "MODEL.META_ARCHITECTURE and MODEL.PROPOSAL_GENERATOR.NAME"
        )
    adapter = TracingAdapter(model, [{"image": image.to(model.device)}], _detect).eval()
    if not len(adapter(*adapter.flattened_inputs)[0]):
        raise InputError(
            "nothing is detected in the sample image, so that a trace would lack parts of the "
            "model: give another --sample-image, or a lower MODEL.ROI_HEADS.SCORE_THRESH_TEST"
        )
    return adapter


def output_names(adapter: TracingAdapter) -> List[str]:
    """What the outputs are: pred_boxes, pred_classes, pred_masks if there are masks, scores."""
    return list(adapter.outputs_schema.keys)


def export(adapter: TracingAdapter, kind: str, path: str) -> None:
    """Write a model as a file of a format, a member of :data:`FORMATS`.

    Raises:
        InputError: the format does not know a part of the model.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what tracing says of every detector of Detectron2
        if kind == "torchscript":
            torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False).save(path)
            return
        names = output_names(adapter)
        try:
            torch.onnx.export(
                adapter,
                adapter.flattened_inputs,
                path,
                dynamo=False,  # the exporter that takes the scripted loop of box_inference.py
                opset_version=OPSET,
                input_names=["image"],
                output_names=names,
                dynamic_axes={
                    "image": {1: "height", 2: "width"},
                    **{name: {0: "detections"} for name in names},
                },
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"this model cannot be exported as ONNX: {reason}") from error


def load_exported(kind: str, path: str, names: List[str], device: Any = "cpu") -> Callable:
    """A function from an image, ``Tensor[3, H, W]``, to detections by name, as an user runs it."""
    if kind == "torchscript":
        module = torch.jit.load(path, map_location=device)
        return lambda image: dict(zip(names, module(image.to(device))))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: {
        name: torch.from_numpy(value)
        for name, value in zip(names, session.run(names, {"image": image.cpu().numpy()}))
    }


def largest_difference(expected: Detections, actual: Detections, side: int) -> float:
    """How far the most different detection is from the nearest one of its class.

    The order does not count: rounding changes that of almost equal scores.

    Args:
        side: of the image, the longer one; differences of boxes are parts of it, in [0, 1].

    Returns:
        the largest difference of scores, boxes and mask probabilities; infinite if numbers of
        detections or classes differ.
    """
    a, b = ({k: v.detach().cpu().float() for k, v in one.items()} for one in (expected, actual))
    if len(a["scores"]) != len(b["scores"]):
        return float("inf")
    if not len(a["scores"]):
        return 0.0
    distance = (a["scores"][:, None] - b["scores"]).abs()
    boxes = (a["pred_boxes"][:, None] - b["pred_boxes"]).abs().amax(dim=2) / side
    distance = torch.maximum(distance, boxes)
    distance[a["pred_classes"][:, None] != b["pred_classes"]] = float("inf")
    (to_b, nearest), to_a = distance.min(dim=1), distance.min(dim=0).values
    worst = max(float(to_b.max()), float(to_a.max()))
    if "pred_masks" in a:
        worst = max(worst, float((a["pred_masks"] - b["pred_masks"][nearest]).abs().max()))
    return worst


def compare(adapter: TracingAdapter, run: Callable, images: List[Tensor]) -> float:
    """The largest difference between a model and what has been exported of it, over images."""
    differences = []
    for image in images:
        with torch.no_grad():
            expected = dict(zip(output_names(adapter), adapter(image.to(adapter.model.device))))
        differences.append(largest_difference(expected, run(image), max(image.shape[1:])))
    return max(differences)


def export_verified(model: Any, sample: Tensor, others: List[Tensor], kind: str, path: str) -> str:
    """Export a model; keep the file if it detects the same as the model in other images.

    Args:
        sample: ``Tensor[3, H, W]``, with which the model is traced.
        others: images of other sizes, on which both are run.

    Returns:
        what has been found, in one line.

    Raises:
        InputError: the model cannot be exported, or the outputs differ by more than the tolerance.
    """
    adapter = make_traceable(model, sample)
    part = f"{path}.part"
    try:
        export(adapter, kind, part)
        run = load_exported(kind, part, output_names(adapter), model.device)
        difference = compare(adapter, run, others)
        if difference > TOLERANCE:
            raise InputError(
                f"{path} is not written: its outputs differ from the model's by {difference:.1e}, "
                f"more than {TOLERANCE:.0e}"
            )
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)
    sizes = ", ".join(f"{image.shape[1]}×{image.shape[2]}" for image in others)
    return (
        f"Traced at {sample.shape[1]}×{sample.shape[2]}; at {sizes} the outputs differ from the "
        f"model's by at most {difference:.1e} (tolerance {TOLERANCE:.0e})"
    )
