#!/usr/bin/env python
"""A whole Cascade Mask R-CNN with the linear classifier and with TDE: inference and training."""

import argparse
import os

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from timing import HEADER, alternate, print_row

from tde_det import add_tde_config

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


def build(kind, args):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_file(os.path.join(CONFIGS, args.config_file))
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", "MODEL.TDE.CLASSIFIER", kind),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
        ]
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    for predictor in model.roi_heads.box_predictor:
        if kind != "linear":
            features = torch.rand(8, predictor.cls_score.weight.shape[1], device=args.device)
            is_foreground = torch.ones(8, dtype=torch.bool, device=args.device)
            predictor.adjustments["tde"].update_mean(features, is_foreground)
    return model


def random_inputs(size, num_objects=12):
    image = torch.randint(0, 256, (3, size, size * 4 // 3), dtype=torch.uint8)
    corner = torch.rand(num_objects, 2) * size * 0.6
    boxes = torch.cat([corner, corner + size * 0.3], dim=1)
    masks = torch.zeros(num_objects, *image.shape[1:], dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = True
    instances = Instances(
        tuple(image.shape[1:]),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(0, 1203, (num_objects,)),
        gt_masks=BitMasks(masks),
    )
    height, width = image.shape[1:]
    return [{"image": image, "instances": instances, "height": height, "width": width}]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="lvis_cascade_tde_R50.yaml")
    parser.add_argument("--size", type=int, default=480, help="short side of the image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    inputs = random_inputs(args.size)
    models = [build(kind, args) for kind in ("linear", "causal_norm")]
    print(HEADER)

    @torch.no_grad()
    def infer(model):
        model.inference(inputs, do_postprocess=False)
        if args.device != "cpu":
            torch.cuda.synchronize()

    def train(model):
        with EventStorage():
            sum(model(inputs).values()).backward()
        model.zero_grad()
        if args.device != "cpu":
            torch.cuda.synchronize()

    for name, step in (("inference", infer), ("a training step", train)):
        for model in models:
            model.train(step is train)
        times = alternate(*(lambda m=m, step=step: step(m) for m in models), args.repeats)
        what = f"{name} of an image of {args.size} pixels, {args.config_file}"
        print_row(f"{what}: linear (stock) and TDE, {args.device}", *times)


if __name__ == "__main__":
    main()
