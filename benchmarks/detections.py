#!/usr/bin/env python
"""From scores to detections: Detectron2's function and ours, results compared."""

import argparse

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from timing import HEADER, alternate, peak_memory, print_memory_row, print_row

from tde_det.inference.box_inference import top_detections

NUM_BOXES, NUM_CLASSES, SHAPE = 1000, 1203, (800, 1333)


def scene(pairs, generator):
    """Boxes around 40 objects, and scores of which about ``pairs`` are above 1e-4."""
    centers = torch.rand(40, 2, generator=generator) * torch.tensor([1300.0, 780])
    sizes = torch.rand(40, 2, generator=generator) * 200 + 20
    near = torch.randint(0, 40, (NUM_BOXES,), generator=generator)
    center = centers[near] + torch.randn(NUM_BOXES, 2, generator=generator) * 8
    size = sizes[near] * (1 + torch.randn(NUM_BOXES, 2, generator=generator) * 0.1)
    boxes = torch.cat([center - size / 2, center + size / 2], dim=1)
    share = pairs / (NUM_BOXES * NUM_CLASSES)
    uniform = torch.rand(NUM_BOXES, NUM_CLASSES + 1, generator=generator, dtype=torch.float64)
    scores = torch.where(uniform < share, -0.003 * (uniform / share).log(), 0)  # few high, many low
    return boxes, scores.float()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    print(HEADER)
    for pairs in (500, 5_000, 50_000, 565_000, 1_050_000):
        boxes, scores = (v.to(args.device) for v in scene(pairs, generator))

        def stock(boxes=boxes, scores=scores):
            found = fast_rcnn_inference([boxes], [scores], [SHAPE], 1e-4, 0.5, 300)[0][0]
            if args.device != "cpu":
                torch.cuda.synchronize()
            return found.pred_boxes.tensor, found.scores, found.pred_classes

        def ours(boxes=boxes, scores=scores):
            found = top_detections(boxes, scores, SHAPE, 1e-4, 0.5, 300)
            if args.device != "cpu":
                torch.cuda.synchronize()
            return found[:3]

        count = int((scores[:, :-1] > 1e-4).sum())
        for expected, actual in zip(stock(), ours()):
            assert torch.equal(expected, actual), count
        repeats = args.repeats if pairs > 100_000 else 7 * args.repeats
        times = alternate(stock, ours, repeats)
        print_row(f"scores to 300 detections, {count:,} candidates", *times)
        if args.device == "cpu" and pairs > 100_000:
            memory = (peak_memory(stock), peak_memory(ours))
            print_memory_row(f"the same, {count:,} candidates: peak memory", *memory)


if __name__ == "__main__":
    main()
