#!/usr/bin/env python
"""Long-tailed image classification: train classifiers, and compare what helps the tail.

Without options: linear and de-confounded classifiers on the bundled cutouts, three seeds, minutes
on two CPU cores. Other data, losses and adjustments:

    train_classifier.py --data cifar100 --root FOLDER_OF_cifar-100-python --imbalance-factor 100
    train_classifier.py --data folder --root FOLDER     # train/CLASS/*, val/CLASS/*; or CLASS/*
    train_classifier.py --data list --root IMAGES --train-list ImageNet_LT_train.txt \\
        --test-list ImageNet_LT_test.txt
    train_classifier.py --loss seesaw --loss-options p=0.8 q=2 --classifier linear cosine capsule
    train_classifier.py --classifier causal_norm --retrain --adjust "tde alpha=0.5,1,1.5" \\
        "tde alpha=1 + norcal gamma=0.3"

An imbalance factor makes class 0 the most frequent one and the last class the rarest.
"""

import argparse
import ast
import itertools
import math
import os
import time

from tde_det.cli import exit_on_input_error
from tde_det.errors import InputError

# PyTorch takes seconds to import: main does so once the arguments are read. A test compares these
# names with the package's.
CLASSIFIERS = ("linear", "causal_norm", "cosine", "capsule")
LOSSES = (
    *("cross_entropy", "weighted_cross_entropy", "focal", "sigmoid_focal", "cb_cross_entropy"),
    *("cb_focal", "ldam", "eql", "eqlv2", "seesaw", "federated", "softmax_federated"),
    *("balanced_softmax", "logit_adjustment", "gol", "ecm"),
)
RETRAINING = ("crt", "lws")
OUTPUT = "output/classifier"

# Defaults of each kind of data. α, and all that is about CIFAR and lists, as in the authors'
# configs for CIFAR-LT and ImageNet-LT.
KEYS = (
    *("arch", "stem_stride", "image_size", "imbalance_factor", "epochs", "batch_size", "lr"),
    *("warmup_epochs", "retrain_epochs", "alpha"),
)
DEFAULTS = {
    "cutouts": ("resnet8x2", 2, 32, 100.0, 25, 128, 0.2, 1.0, 5, 1.5),
    "cifar10": ("resnet32", 1, 32, 100.0, 200, 256, 0.2, 5.0, 10, 1.0),
    "cifar100": ("resnet32", 1, 32, 100.0, 200, 256, 0.2, 5.0, 10, 1.5),
    "folder": ("resnet18", None, 224, None, 90, 64, 0.05, 1.0, 10, 1.5),
    "list": ("resnext50_32x4d", None, 224, None, 90, 512, 0.2, 0.0, 10, 3.0),
}


def number(kind, low, high=math.inf):
    """An argument's type: a number of this kind in [low, high]."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high or math.isinf(value):
            limit = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    parse.__name__ = kind.__name__  # in argparse's own message
    return parse


def option(text):
    """An argument's type: ``p=0.8`` → ``("p", 0.8)``."""
    name, _, value = text.partition("=")
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = None
    if not name or not isinstance(parsed, (int, float)) or not math.isfinite(parsed):
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {text!r}")
    return name, parsed


def parse_args():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole, positive, real = number(int, 0), number(int, 1), number(float, 0)
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=sorted(DEFAULTS), default="cutouts")
    data.add_argument("--root", help="of CIFAR's files, of the folder, or of a list's paths")
    data.add_argument("--train-list", help="for --data list: lines `relative/path.jpg label`")
    data.add_argument("--test-list", help="for --data list")
    factor = "IF of n_i = n_max·IF^(−i/(C−1)) (default: 100 for cutouts and CIFAR, else none)"
    data.add_argument("--imbalance-factor", type=number(float, 1), help=factor)
    data.add_argument("--largest-class", type=positive, help="n_max (default: 300 cutouts or all)")
    data.add_argument("--classes", type=number(int, 2), default=60, help="of the cutouts")
    data.add_argument("--test-per-class", type=positive, default=50, help="images, of the cutouts")
    data.add_argument("--image-size", type=positive, help="pixels; CIFAR has 32")
    data.add_argument("--test-fraction", type=float, default=0.2, help="of a folder without train/")

    model = parser.add_argument_group("model")
    both = ["linear", "causal_norm"]
    model.add_argument("--classifier", nargs="+", choices=CLASSIFIERS, default=both)
    model.add_argument("--arch", help="a ResNet of torchvision, or CIFAR's resnet8, 20, 32, …")
    model.add_argument("--stem-stride", type=int, help="1, 2 or 4 (default: by image size)")
    model.add_argument("--num-heads", type=positive, default=2, help="K")
    model.add_argument("--tau", type=real, default=16.0, help="temperature of the logits")
    model.add_argument("--gamma", type=real, default=1 / 32, help="added to weight norms")
    model.add_argument("--mu", type=real, default=0.9998, help="decay of the feature mean")

    training = parser.add_argument_group("training")
    training.add_argument("--seeds", type=number(int, 0, 2**32 - 1), nargs="+", default=[0, 1, 2])
    training.add_argument("--loss", choices=LOSSES, default="cross_entropy")
    training.add_argument("--loss-options", type=option, nargs="+", default=[], metavar="N=VALUE")
    training.add_argument("--epochs", type=positive)
    training.add_argument("--batch-size", type=number(int, 2), help="batch norm needs 2 images")
    training.add_argument("--lr", type=real)
    training.add_argument("--weight-decay", type=real, default=5e-4)
    training.add_argument("--warmup-epochs", type=real)

    after = parser.add_argument_group("after training")
    chains = 'such as "tde alpha=1,1.5" (default: those of tde, "tau_norm tau=0.5", ncm that fit)'
    after.add_argument("--adjust", nargs="*", metavar="CHAIN", help=chains)
    after.add_argument("--retrain", nargs="*", choices=RETRAINING, default=RETRAINING)
    after.add_argument("--retrain-epochs", type=positive)

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="of PyTorch (default: the GPU, if there is one)")
    machine.add_argument("--jobs", type=positive, help="runs at a time (default: 1 per CPU core)")
    machine.add_argument("--workers", type=whole, default=2, help="processes that read files")
    machine.add_argument("--output", help=f"new folder (default: {OUTPUT}, or {OUTPUT}_2, …)")
    args = parser.parse_args()
    for key, value in zip(KEYS, DEFAULTS[args.data]):
        if getattr(args, key, None) is None:
            setattr(args, key, value)
    if args.stem_stride is None:
        args.stem_stride = 1 if args.image_size <= 48 else 2 if args.image_size <= 96 else 4
    args.classifier, args.seeds = list(dict.fromkeys(args.classifier)), sorted(set(args.seeds))
    args.loss_options = dict(args.loss_options)
    if args.data != "cutouts" and not args.root:
        parser.error(f"--data {args.data} needs --root")
    if args.data == "list" and not (args.train_list and args.test_list):
        parser.error("--data list needs --train-list and --test-list")
    if args.data == "list" and (args.imbalance_factor or args.largest_class):
        parser.error("a list is long-tailed already: leave --imbalance-factor out")
    if args.data.startswith("cifar") and args.image_size != 32:
        parser.error(f"CIFAR has images of 32 pixels, --image-size is {args.image_size}")
    return args


def load(args, seed):
    """The benchmark that the arguments ask for."""
    from tde_det.classification.cutout_images import cutout_benchmark
    from tde_det.classification.sources import cifar_benchmark, folder_benchmark, list_benchmark

    factor, largest, size = args.imbalance_factor, args.largest_class, args.image_size
    if args.data == "cutouts":
        return cutout_benchmark(
            args.classes, largest or 300, factor, args.test_per_class, size, seed
        )
    if args.data == "folder":
        return folder_benchmark(args.root, size, factor, largest, args.test_fraction, seed)
    if args.data == "list":
        return list_benchmark(args.train_list, args.test_list, args.root, size)
    return cifar_benchmark(args.data, args.root, factor, largest, seed)


def make_output(asked):
    """Make the folder for results, one without others."""
    names = itertools.chain([OUTPUT], (f"{OUTPUT}_{i}" for i in itertools.count(2)))
    folder = asked or next(name for name in names if not os.path.exists(name))
    if os.path.exists(os.path.join(folder, "metrics.json")):
        raise InputError(f"--output {folder} holds the results of another run: name a new folder")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder} cannot be made: {error.strerror}") from error
    return folder


@exit_on_input_error
def main():
    args = parse_args()
    from detectron2.utils.logger import setup_logger

    from tde_det.classification import experiment
    from tde_det.classification.accuracy import FEW_BELOW, MANY_ABOVE, write_results
    from tde_det.classification.settings import Machine, RunSettings, Schedule

    setup_logger(name="tde_det")
    start = time.perf_counter()
    device = experiment.choose_device(args.device)
    defaults = [f"tde alpha={args.alpha}", "tau_norm tau=0.5", "ncm"]
    chains = experiment.choose_chains(args.adjust, defaults, args.classifier, args.loss)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    runs = len(args.classifier) * len(args.seeds)
    jobs = min(args.jobs or (cores if device == "cpu" else 1), runs)
    schedule = Schedule(
        args.epochs, args.batch_size, args.lr, args.weight_decay, args.warmup_epochs
    )
    settings = RunSettings(
        arch=args.arch,
        stem_stride=args.stem_stride,
        normalized={"num_heads": args.num_heads, "tau": args.tau, "gamma": args.gamma},
        mu=args.mu,
        loss=args.loss,
        loss_options=args.loss_options,
        schedule=schedule,
        adjustments=chains,
        retrain=args.retrain,
        retrain_schedule=schedule._replace(epochs=args.retrain_epochs, warmup_epochs=0.0),
        machine=Machine(device, args.workers, max(1, cores // jobs)),
    )
    first = load(args, args.seeds[0])
    for name in args.classifier:
        experiment.build(name, first, settings)  # find out now what cannot be built
    args.output = make_output(args.output)
    data = first.describe()
    print(
        f"{data['classes']} classes: {data['many_classes']} many (> {MANY_ABOVE} training images), "
        f"{data['medium_classes']} medium, {data['few_classes']} few (< {FEW_BELOW}). "
        f"{data['train_images']} training images, {data['largest_class']} to "
        f"{data['smallest_class']} per class; {data['test_images']} test images. {data['splits']}",
        flush=True,
    )

    finished, table = [], ""
    for result in experiment.run_all(
        args.classifier,
        args.seeds,
        lambda seed: first if seed == args.seeds[0] else load(args, seed),
        settings,
        args.output,
        jobs,
    ):
        finished.append(result)
        description = {"arguments": vars(args), "data": data}
        table = write_results(args.output, description, finished, args.classifier)
    for name, skipped in {f["classifier"]: f["skipped"] for f in finished}.items():
        for chain, reason in skipped.items():
            print(f"left out for {name}: {chain} ({reason})")
    print(f"\n{table}\n\n{time.perf_counter() - start:.0f} s; results are in {args.output}")


if __name__ == "__main__":
    main()
