"""Parameters, FLOPs, activations and time of a detector's parts, for one image."""

import time
from collections import defaultdict
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, parameter_count
from tabulate import tabulate
from torch import Tensor, nn

from ..errors import InputError

WARM_UP = 2  # runs before those whose time is taken


class Part(NamedTuple):
    """What a part costs. FLOPs are multiply-adds, as fvcore counts them; activations, numbers."""

    name: str
    parameters: int
    flops: int
    activations: int
    seconds: float


class Analysis(NamedTuple):
    """The parts of a model, what is in none of them, and how they have been measured."""

    parts: List[Part]
    setting: str

    def table(self) -> str:
        """One table, with the sum of all parts at the end, and the setting below."""
        total = Part("total", *(sum(column) for column in zip(*(p[1:] for p in self.parts))))
        rows = [
            (p.name, p.parameters / 1e6, p.flops / 1e9, p.activations / 1e6, p.seconds * 1e3)
            for p in (*self.parts, total)
        ]
        headers = ("part", "parameters (M)", "GFLOPs", "activations (M)", "time (ms)")
        formats = ("", ".3f", ".3f", ".3f", ".1f")
        return f"{tabulate(rows, headers, 'github', floatfmt=formats)}\n\n{self.setting}"


def spread_boxes(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """``Tensor[count, 4]``, from 1/16 to 1/2 of the image's sides, so that all levels have some."""
    part = torch.linspace(0, 1, count, device=device)
    size = 2 ** (-4 + 3 * part)
    sides = torch.tensor([width, height], device=device)
    corner = torch.stack([(7 * part) % 1, (11 * part) % 1], dim=1) * (1 - size[:, None])
    return torch.cat([corner * sides, (corner + size[:, None]) * sides], dim=1)


def box_counts(model: Any) -> Tuple[int, int]:
    """How many proposals and detections of an image the model's settings allow."""
    heads: Any = model.roi_heads.box_predictor
    predictor: Any = heads[-1] if isinstance(heads, nn.ModuleList) else heads
    return model.proposal_generator.post_nms_topk[False], max(predictor.test_topk_per_image, 1)


def run(model: Any, inputs: List[Dict[str, Tensor]]) -> Any:
    """Inference, with as many proposals and detections as there may be, whatever the weights."""
    images = model.preprocess_image(inputs)
    height, width = map(int, images.image_sizes[0])
    features = model.backbone(images.tensor)
    proposed, _ = model.proposal_generator(images, features)
    proposals, detections = (Instances((height, width)) for _ in range(2))
    proposal_boxes, boxes = (
        spread_boxes(count, height, width, model.device) for count in box_counts(model)
    )
    proposals.proposal_boxes = Boxes(proposal_boxes)
    proposals.objectness_logits = proposal_boxes.new_zeros(len(proposal_boxes))
    detections.pred_boxes = Boxes(boxes)
    detections.pred_classes = torch.zeros(len(boxes), dtype=torch.long, device=model.device)
    found = model.roi_heads._forward_box(features, [proposals])
    return proposed, found, model.roi_heads.forward_with_given_boxes(features, [detections])


class _Run(nn.Module):
    """:func:`run` as a module, for fvcore."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: List[Dict[str, Tensor]]) -> Any:
        return run(self.model, inputs)


def modules_of(model: nn.Module, prefix: str = "") -> Dict[str, nn.Module]:
    """The parts by name: backbone, proposal generator, and those of the ROI heads, by stage."""
    found: Dict[str, nn.Module] = {}
    for key, module in model.named_children():
        name = prefix + key
        if key == "roi_heads" or isinstance(module, nn.ModuleList):
            found.update(modules_of(module, f"{name}."))
        else:
            found[name] = module
    return found


def _seconds(model: Any, inputs: List[Dict[str, Tensor]], iterations: int) -> Dict[str, float]:
    """Mean time within each part; under "" that of a whole run."""
    seconds: Dict[str, float] = defaultdict(float)
    started: Dict[str, float] = {}

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter()

    def start(name: str) -> Any:
        return lambda *_: started.__setitem__(name, now())

    def stop(name: str) -> Any:
        return lambda *_: seconds.__setitem__(name, seconds[name] + now() - started[name])

    hooks = []
    for name, module in modules_of(model).items():
        # A box predictor is called for its logits, and its adjustments after it.
        for called in (module, getattr(module, "adjustments", None)):
            if called is not None:
                hooks.append(called.register_forward_pre_hook(start(name)))
                hooks.append(called.register_forward_hook(stop(name)))
    try:
        for k in range(WARM_UP + iterations):
            if k == WARM_UP:
                seconds.clear()
                start("")()
            run(model, inputs)
        stop("")()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value / iterations for name, value in seconds.items()}


@torch.no_grad()
def analyze(model: Any, inputs: List[Dict[str, Tensor]], iterations: int = 5) -> Analysis:
    """Measure what each part of a detector costs at inference.

    The ROI heads see as many proposals, and the mask head as many detections, as the model's
    settings allow at most: their cost does not depend on the weights.

    Args:
        model: a ``GeneralizedRCNN`` with ``StandardROIHeads`` or a subclass, such as a cascade.
        inputs: one image, ``[{"image": Tensor[3, H, W]}]``.
        iterations: runs whose mean time is taken.

    Raises:
        InputError: it is a model of another kind.
    """
    if not isinstance(model, GeneralizedRCNN) or not isinstance(model.roi_heads, StandardROIHeads):
        raise InputError("only a GeneralizedRCNN with standard or cascade ROI heads is analysed")
    if not hasattr(model.proposal_generator, "post_nms_topk"):
        raise InputError("only a model with an RPN is analysed: see MODEL.PROPOSAL_GENERATOR.NAME")
    training, counted = model.training, _Run(model.eval())
    adapter = TracingAdapter(counted, inputs, allow_non_tensor=True)
    counts = [
        FlopCountAnalysis(counted, inputs),
        ActivationCountAnalysis(adapter, adapter.flattened_inputs),
    ]
    for count in counts:  # what has no FLOPs, such as NMS, is known
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        count.tracer_warnings("none")
    seconds = _seconds(model, inputs, iterations)
    flops, activations = (count.by_module() for count in counts)
    model.train(training)
    parameters = parameter_count(model)
    parts = [
        Part(
            name,
            parameters[name],
            flops[f"model.model.{name}"],
            activations[f"model.model.{name}"],
            seconds.get(name, 0.0),
        )
        for name in modules_of(model)
    ]
    sums = [sum(column) for column in zip(*(part[1:] for part in parts))]
    whole = (parameters[""], flops[""], activations[""], seconds[""])
    parts.append(Part("the rest", *(max(a - b, 0) for a, b in zip(whole, sums))))
    proposals, detections = box_counts(model)
    height, width = inputs[0]["image"].shape[-2:]
    return Analysis(
        parts,
        f"One image of {height}×{width}, {proposals} proposals, {detections} detections; the rest "
        f"is NMS and the like. Time: mean of {iterations} runs after {WARM_UP} others, on "
        f"{model.device}, CPU threads: {torch.get_num_threads()}. FLOPs are multiply-adds, of "
        "convolutions and matrix products.",
    )
