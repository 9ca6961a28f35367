#!/usr/bin/env python
"""Write a checkpoint with other scores: no training, same config, no other option needed to use it.

tau_norm  divide the class weights of a linear classifier by their norm to the power of --tau
norcal    divide scores by class counts to the power of --gamma
ncm       score by similarity to class means, from one pass over DATASETS.TRAIN
tde       the feature mean and α of TDE, from one pass over DATASETS.TRAIN
"""

import argparse
import os

import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from tde_det import CausalNormClassifier
from tde_det.build_loss import check_distribution
from tde_det.data import register_custom_sets
from tde_det.data.class_counts import class_counts
from tde_det.data.custom_sets import missing_data_hint
from tde_det.data.image_files import check_images_exist
from tde_det.data.loader import image_files
from tde_det.engine import (
    check_files,
    exit_on_input_error,
    fall_back_to_cpu,
    launch_cli,
    read_config,
)
from tde_det.engine.checkpoints import ExactCheckpointer, readable_checkpoint
from tde_det.engine.checks import check_num_classes
from tde_det.engine.single_pass import foreground_statistics
from tde_det.errors import InputError
from tde_det.post_hoc import box_predictors, calibrate, check_calibratable, fill_feature_mean

# The options that act on one method alone, or on two.
OPTIONS = {
    "tau_norm": ("tau",),
    "norcal": ("gamma", "count", "background"),
    "ncm": ("temperature", "max_images"),
    "tde": ("max_images",),
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--config-file", required=True, help="the one it was trained with")
    parser.add_argument("--method", required=True, choices=sorted(OPTIONS))
    parser.add_argument("--tau", type=float, help="τ of tau_norm (default: 0.5)")
    parser.add_argument("--gamma", type=float, help="γ of norcal (default: 0.6)")
    parser.add_argument(
        "--count", choices=("images", "instances"), help="what norcal counts (default: images)"
    )
    parser.add_argument(
        "--background",
        choices=("exempt", "paper"),
        help="norcal: keep the background's probability, or let it take part in the "
        "renormalisation (default: exempt)",
    )
    parser.add_argument("--temperature", type=float, help="T of ncm (default: 16)")
    parser.add_argument("--max-images", type=int, help="of ncm and tde (default: all)")
    parser.add_argument("--output", help="default: CHECKPOINT_METHOD.pth")
    parser.add_argument("--num-gpus", type=int, default=1, help="for the pass of ncm and tde")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs that change the config")
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto")
    return parser.parse_intermixed_args()


def check_args(args):
    """The method's own options that were given, and the output's path."""
    given = {}
    for name in sorted({option for options in OPTIONS.values() for option in options}):
        value = getattr(args, name)
        if value is not None:
            if name not in OPTIONS[args.method]:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} has no effect on --method {args.method}")
            given[name] = value
    if given.get("max_images", 1) < 1:
        raise InputError(f"--max-images must be positive, got {args.max_images}")
    if not os.path.isfile(args.checkpoint):
        raise InputError(f"{args.checkpoint} is no file")
    output = args.output or f"{os.path.splitext(args.checkpoint)[0]}_{args.method}.pth"
    if os.path.exists(output):
        raise InputError(f"{output} exists already: name another --output, or delete it")
    folder = os.path.dirname(output) or "."
    try:  # now, not after a pass over the training set
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: {error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--output {output}: its folder cannot be written to")
    return given, output


def fill_means(cfg, predictors, statistics):
    """Post-hoc TDE in every stage, saying what changes."""
    for stage, (predictor, own) in enumerate(zip(predictors, statistics)):
        classifier = predictor.cls_score
        old = classifier.feature_mean.double().clone()
        alpha = fill_feature_mean(classifier, own)
        print(
            f"stage {stage}: {int(own.counts.sum()):,} foreground boxes, mean cosine to their "
            f"direction {own.mean_cosine():.4f}: α·cos = 1 at "
            + (f"α = {alpha:.4f}" if alpha else "no α")
            + f" (MODEL.TDE.ALPHA is {cfg.MODEL.TDE.ALPHA})"
        )
        if old.any():
            cosine = torch.cosine_similarity(old, own.mean(), dim=0)
            print(f"stage {stage}: cosine of this mean and the one in the checkpoint {cosine:.4f}")


@exit_on_input_error
def main(args):
    given, output = check_args(args)
    setup_logger(distributed_rank=comm.get_rank(), name="tde_det")
    cfg = read_config(args)
    cfg.VIS_PERIOD = 0
    fall_back_to_cpu(cfg)
    register_custom_sets(cfg)
    if args.method != "tau_norm":
        check_files(cfg.DATASETS.TRAIN)
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
    model = build_model(cfg).eval()
    predictors = box_predictors(model)
    if not predictors:
        raise InputError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} cannot be calibrated: it must be "
            "TDECascadeROIHeads or TDEStandardROIHeads"
        )
    linear = not isinstance(predictors[0].cls_score, CausalNormClassifier)
    if args.method == "tde" and linear:
        raise InputError(
            'TDE needs normalised logits, but MODEL.TDE.CLASSIFIER is "linear": take tau_norm, '
            "ncm or norcal"
        )
    if args.method == "tde":
        check_distribution(predictors[0].activation, "this model's loss")
    buffers = ("cls_score.feature_mean", "cls_score.foreground_cosine")
    with readable_checkpoint(args.checkpoint):
        ExactCheckpointer(model, buffers if args.method == "tde" else ()).load(args.checkpoint)
    if any(predictor.calibration is not None for predictor in predictors):
        raise InputError(f"{args.checkpoint} is calibrated already: take the one it was made from")

    for predictor in predictors if args.method != "tde" else ():
        check_calibratable(predictor, args.method)  # before the pass over the training set
    max_images = given.pop("max_images", None)
    if args.method in ("ncm", "tde"):
        for name in cfg.DATASETS.TRAIN if comm.is_main_process() else ():
            check_images_exist(image_files(name), name, missing_data_hint())
        statistics = foreground_statistics(cfg, model, max_images)
    if args.method == "tde":
        fill_means(cfg, predictors, statistics)
    else:
        if args.method == "ncm":
            given["statistics"] = statistics
        if args.method == "norcal":
            counts = class_counts(cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
            given["counts"] = getattr(counts, given.pop("count", "images"))
        calibrate(model, args.method, **given)
    if comm.is_main_process():
        torch.save({"model": model.state_dict()}, output)
        print(f"{output} is calibrated by {args.method}; use it with the same config")


if __name__ == "__main__":
    launch_cli(main, parse_args())
