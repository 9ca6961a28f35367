#!/usr/bin/env python
"""Evaluation of a data set, Detectron2's pieces and ours in turn on every image.

Stock is CascadeROIHeads, full-size masks and LVISEvaluator on lvis-api; ours is what train_net.py
runs. Both have the same weights and Detectron2's linear classifier, and must give the same
detections, except among exactly equal scores. Without --weights a small model is trained for a few
iterations first: like every early model it is unsure, and has 10⁵ to 10⁶ candidates an image.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
import time
from typing import Any, Tuple
from unittest import mock

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer
from detectron2.evaluation import LVISEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from timing import print_row

from tde_det import add_tde_config
from tde_det.engine import Trainer
from tde_det.engine.safe_checkpointer import SafeCheckpointer
from tde_det.evaluation import LongTailEvaluator
from tde_det.inference.run_length_masks import RunLengthMasks

CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")
# A light network, so that what follows the network shows.
SMALL: Tuple[Any, ...] = (
    *("MODEL.ROI_HEADS.NUM_CLASSES", 1203, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 1000, "MODEL.RPN.POST_NMS_TOPK_TEST", 1000),
    *("INPUT.MIN_SIZE_TRAIN", "(320,)", "INPUT.MIN_SIZE_TEST", 320, "INPUT.MASK_FORMAT", "polygon"),
    *("DATASETS.LVIS_CUSTOM", [], "TEST.DETECTIONS_PER_IMAGE", 300),
    *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.005, "DATALOADER.NUM_WORKERS", 0),
)


def configure(args, folder):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_file(os.path.join(CONFIGS, args.config_file))
    cfg.merge_from_list(list(SMALL) if not args.weights else [])
    cfg.merge_from_list(
        [
            *("MODEL.TDE.CLASSIFIER", "linear", "MODEL.DEVICE", args.device),
            *("DATASETS.TRAIN", (args.train,), "DATASETS.TEST", (args.dataset,)),
            *("OUTPUT_DIR", folder, "MODEL.WEIGHTS", args.weights, *args.opts),
        ]
    )
    return cfg


def train(cfg, iterations):
    """Train from scratch, without warm-up, and let the config refer to the result."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        SimpleTrainer(model, Trainer.build_train_loader(cfg), optimizer).train(0, iterations)
    DetectionCheckpointer(model, cfg.OUTPUT_DIR).save("model")
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model.pth")


class Competitor:
    """A model with its evaluator, and the seconds that each image took."""

    def __init__(self, cfg, heads, wrap, evaluator):
        cfg = cfg.clone()
        cfg.MODEL.ROI_HEADS.NAME = heads
        model = build_model(cfg).eval()
        SafeCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        self.backbone = []
        model.backbone.register_forward_pre_hook(lambda *_: self.backbone.append(-self.now()))
        model.backbone.register_forward_hook(self.after_backbone)
        self.run, self.evaluator = wrap(model), evaluator
        self.evaluator.reset()
        self.seconds = []

    def now(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def after_backbone(self, *_):
        self.backbone[-1] += self.now()

    def process(self, inputs):
        start = self.now()
        self.evaluator.process(inputs, self.run(inputs))
        self.seconds.append(self.now() - start)

    def evaluate(self):
        start = self.now()
        with contextlib.redirect_stdout(io.StringIO()):
            metrics = self.evaluator.evaluate()
        return metrics, self.now() - start


def without_ties(results):
    """Per image, the set of detections that score higher than the image's last one."""
    by_image = {}
    for result in results:
        by_image.setdefault(result["image_id"], []).append(result)
    return {
        image_id: {json.dumps(d) for d in found if d["score"] > min(f["score"] for f in found)}
        for image_id, found in by_image.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="mini_lvis_cascade_baseline.yaml")
    parser.add_argument("--weights", default="", help="a checkpoint of the config file's model")
    parser.add_argument("--dataset", default="lvis_v1_val")
    parser.add_argument("--train", default="lvis_v1_train")
    parser.add_argument("--iterations", type=int, default=60, help="of training without --weights")
    parser.add_argument("--images", type=int, help="the first so many (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that change the config")
    args = parser.parse_args()
    if not os.path.exists(MetadataCatalog.get(args.dataset).get("json_file", "")):
        print(f"Not measured: {args.dataset} is not in DETECTRON2_DATASETS.")
        return
    lvis_api_needs = mock.patch.object(np, "float", float, create=True)
    with tempfile.TemporaryDirectory() as folder, lvis_api_needs:
        cfg = configure(args, folder)
        if not args.weights:
            train(cfg, args.iterations)
        folders = [os.path.join(folder, name) for name in ("stock", "ours")]
        stock = Competitor(
            *(cfg, "CascadeROIHeads", lambda model: model),
            LVISEvaluator(args.dataset, ("bbox", "segm"), output_dir=folders[0]),
        )
        ours = Competitor(
            *(cfg, "TDECascadeROIHeads", RunLengthMasks),
            LongTailEvaluator(args.dataset, ("bbox", "segm"), folders[1]),
        )
        with torch.no_grad():
            loader = Trainer.build_test_loader(cfg, args.dataset)
            for inputs in itertools.islice(loader, args.images):
                for competitor in (stock, ours):
                    competitor.process(inputs)
        metrics, times = zip(*(c.evaluate() for c in (stock, ours)))
        results = []
        for name in folders:
            with open(os.path.join(name, "lvis_instances_results.json")) as f:
                results.append(json.load(f))
        assert without_ties(results[0]) == without_ties(results[1]), "different detections"
        for task, values in metrics[0].items():
            for metric, value in values.items():
                other = metrics[1][task][metric]
                # Detectron2's is negative where there is nothing to measure, ours NaN.
                assert abs(value - other) < 0.01 or (value < 0 and other != other), (task, metric)
    count = len(stock.seconds)
    total = [sum(c.seconds) + t for c, t in zip((stock, ours), times)]
    rest = [t - sum(c.backbone) for c, t in zip((stock, ours), total)]
    print(f"{count} images of {args.dataset}, {len(results[0]):,} detections, ", end="")
    print(f"box AP {metrics[0]['bbox']['AP']!r} in both, mask AP {metrics[0]['segm']['AP']!r}\n")
    print("| item | stock | tde_det | times faster | spread |\n|---|---|---|---|---|")
    print_row("an image: network to run lengths", stock.seconds, ours.seconds)
    afterwards = ([a - b for a, b in zip(c.seconds, c.backbone)] for c in (stock, ours))
    print_row("an image, without the backbone", *afterwards)
    for item, (a, b) in {
        "AP, both tasks": times,
        "all of it, per 1,000 images": [1000 * t / count for t in total],
        "all without the backbone, per 1,000 images": [1000 * t / count for t in rest],
    }.items():
        print(f"| {item} | {a:,.2f} s | {b:,.2f} s | {a / b:.2f} | |")
    a, b = (count / t for t in total)
    print(f"| images per second | {a:.2f} | {b:.2f} | {b / a:.2f} | |")


if __name__ == "__main__":
    main()
