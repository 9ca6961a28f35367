#!/usr/bin/env python
"""From mask probabilities to RLE: Detectron2's path and ours, results compared."""

import argparse
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from detectron2.layers import paste_masks_in_image
from timing import HEADER, alternate, peak_memory, print_memory_row, print_row

from tde_det.data.rle import encode_masks


def scene(count, size, shape, generator):
    """Blobs in boxes of a median size."""
    height, width = shape
    sizes = (torch.randn(count, 2, generator=generator) * 0.6).exp() * size
    limit = torch.tensor([width, height])
    sizes = torch.minimum(sizes, limit)
    corner = torch.rand(count, 2, generator=generator) * (limit - sizes)
    coarse = torch.randn(count, 1, 6, 6, generator=generator) * 4
    axis = torch.linspace(-1, 1, 28)
    bump = 6 * (1 - axis[:, None] ** 2 - axis**2)
    masks = (F.interpolate(coarse, (28, 28), mode="bilinear")[:, 0] + bump).sigmoid()
    return masks, torch.cat([corner, corner + sizes], dim=1)


def stock(masks, boxes, shape):
    """``detector_postprocess`` and ``instances_to_coco_json``, as far as masks go."""
    pasted = paste_masks_in_image(masks, boxes, shape).cpu()
    rles = [
        mask_util.encode(np.array(mask.numpy()[:, :, None], order="F", dtype="uint8"))[0]
        for mask in pasted
    ]
    return [{"size": rle["size"], "counts": rle["counts"].decode("utf-8")} for rle in rles]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    print(HEADER)
    for size, shape in ((50, (480, 640)), (200, (480, 640)), (200, (1500, 2000))):
        masks, boxes = (v.to(args.device) for v in scene(300, size, shape, generator))
        results = [f(masks, boxes, shape) for f in (stock, encode_masks)]
        pairs = [pair for pair in zip(*results) if pair[0] != pair[1]]
        differing = sum((mask_util.decode(a) != mask_util.decode(b)).sum() for a, b in pairs)
        assert differing <= 1e-6 * sum(int(mask_util.area(rle)) for rle in results[0]), differing
        runs = [partial(f, masks, boxes, shape) for f in (stock, encode_masks)]
        item = f"300 masks of median {size} px in {shape[0]}×{shape[1]}"
        print_row(f"{item} to RLE", *alternate(*runs, args.repeats))
        if args.device == "cpu":
            print_memory_row(f"{item}: peak memory", *map(peak_memory, runs))


if __name__ == "__main__":
    main()
