#!/usr/bin/env python
"""Backbones of timm in a detector: parameters, seconds an image, and whether they train."""

import argparse
import time
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tde_det.engine import read_config

CONFIG = Path(__file__).parent.parent / "configs" / "ccp_cascade_tde_lite0.yaml"
MODELS = (
    "resnet18",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "swin_tiny_patch4_window7_224",
)


def build(name):
    """The config's detector with random weights of another backbone."""
    opts = ["MODEL.TIMM.NAME", name, "MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.NORM", ""]
    opts += ["MODEL.TIMM.FROZEN_STAGES", "0", "MODEL.MASK_ON", "False", "MODEL.DEVICE", "cpu"]
    return build_model(read_config(str(CONFIG), opts))


def seconds_per_image(backbone, height, width, repeats):
    """The fastest run of backbone and FPN: what else the machine does only adds to it."""
    image = torch.randn(1, 3, height, width)
    backbone.eval()
    times = []
    with torch.inference_mode():
        backbone(image)
        for _ in range(repeats):
            start = time.perf_counter()
            backbone(image)
            times.append(time.perf_counter() - start)
    return min(times)


def losses_of(model, steps):
    """The total loss before and after some steps on one batch, two images of odd sizes."""
    batch = []
    for height, width in ((157, 235), (130, 201)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[30.0, 40.0, 120.0, 110.0]]))
        instances.gt_classes = torch.tensor([1])
        pixels = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
        batch.append({"image": pixels, "instances": instances})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    values = []
    with EventStorage():
        for _ in range(steps + 1):
            optimizer.zero_grad()
            loss = sum(model.train()(batch).values())
            loss.backward()
            optimizer.step()
            values.append(loss.item())
    return values[0], values[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(320, 480), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="of training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    height, width = args.size
    threads = f"{args.threads} thread{'s' if args.threads > 1 else ''}"
    print(f"| backbone | parameters (M) | s / image, {height}×{width}, {threads} | trains |")
    print("|---|---|---|---|")
    for name in args.models:
        model = build(name)
        millions = sum(p.numel() for p in model.backbone.bottom_up.parameters()) / 1e6
        seconds = seconds_per_image(model.backbone, height, width, args.repeats)
        before, after = losses_of(model, args.steps)
        answer = f"{'yes' if after < 0.7 * before else 'no'}, {before:.2f} → {after:.2f}"
        print(f"| `{name}` | {millions:.1f} | {seconds:.3f} | {answer} |", flush=True)


if __name__ == "__main__":
    main()
