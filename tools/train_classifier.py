#!/usr/bin/env python
"""Long-tailed image classification: train classifiers, and compare what helps the tail.

Without options: linear and de-confounded classifiers on the bundled cutouts, three seeds, minutes
on two CPU cores. Other data, and other losses:

    train_classifier.py --data cifar100 --root FOLDER_OF_cifar-100-python --imbalance-factor 100
    train_classifier.py --data folder --root FOLDER     # train/CLASS/*, val/CLASS/*; or CLASS/*
    train_classifier.py --data list --root IMAGES --train-list ImageNet_LT_train.txt \\
        --test-list ImageNet_LT_test.txt
    train_classifier.py --loss seesaw --loss-options p=0.8 q=2 --classifier linear cosine capsule
    train_classifier.py --classifier causal_norm --alpha 0.5 1 1.5 2 auto --post tde

An imbalance factor makes class 0 the most frequent one and the last class the rarest.
"""

import argparse
import ast
import itertools
import os
import time
from typing import Any, Dict

import torch
from detectron2.utils.logger import setup_logger

from tde_det.classification.accuracy import FEW_BELOW, MANY_ABOVE, split_classes
from tde_det.classification.cutout_images import cutout_benchmark
from tde_det.classification.experiment import Settings, build, run_all, write_results
from tde_det.classification.images import Machine
from tde_det.classification.methods import AUTO, METHODS, MethodSettings, check_methods, why_not
from tde_det.classification.model import CLASSIFIER_NAMES
from tde_det.classification.sources import cifar_benchmark, folder_benchmark, list_benchmark
from tde_det.classification.training import Schedule
from tde_det.engine import exit_on_input_error
from tde_det.errors import InputError
from tde_det.losses import LOSSES

OUTPUT = "output/classifier"
# Defaults for each kind of data. α, and all that is about CIFAR and lists, as in the authors'
# configs for CIFAR-LT and ImageNet-LT.
DEFAULTS: Dict[str, Dict[str, Any]] = {
    "cutouts": {
        "imbalance_factor": 100.0,
        "image_size": 32,
        "arch": "resnet8x2",
        "stem_stride": 2,
        "epochs": 25,
        "batch_size": 128,
        "lr": 0.2,
        "warmup_epochs": 1.0,
        "retrain_epochs": 5,
        "alpha": [1.5],
    },
    "cifar10": {
        "imbalance_factor": 100.0,
        "image_size": 32,
        "arch": "resnet32",
        "stem_stride": 1,
        "epochs": 200,
        "batch_size": 256,
        "lr": 0.2,
        "warmup_epochs": 5.0,
        "retrain_epochs": 10,
        "alpha": [1.0],
    },
    "folder": {
        "imbalance_factor": None,
        "image_size": 224,
        "arch": "resnet18",
        "epochs": 90,
        "batch_size": 64,
        "lr": 0.05,
        "warmup_epochs": 1.0,
        "retrain_epochs": 10,
        "alpha": [1.5],
    },
    "list": {
        "imbalance_factor": None,
        "image_size": 224,
        "arch": "resnext50_32x4d",
        "epochs": 90,
        "batch_size": 512,
        "lr": 0.2,
        "warmup_epochs": 0.0,
        "retrain_epochs": 10,
        "alpha": [3.0],
    },
}
DEFAULTS["cifar100"] = {**DEFAULTS["cifar10"], "alpha": [1.5]}


def number_or_auto(text):
    """α: a number, or "auto"."""
    return text if text == AUTO else float(text)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=sorted(DEFAULTS), default="cutouts")
    data.add_argument("--root", help="of CIFAR's files, of the folder, or of a list's paths")
    data.add_argument("--train-list", help="for --data list: lines `relative/path.jpg label`")
    data.add_argument("--test-list", help="for --data list")
    data.add_argument(
        "--imbalance-factor",
        type=float,
        help="IF of n_i = n_max·IF^(−i/(C−1)) (default: 100 for cutouts and CIFAR, else none)",
    )
    data.add_argument("--largest-class", type=int, help="n_max (default: 300 cutouts, else all)")
    data.add_argument("--classes", type=int, default=60, help="of the cutouts")
    data.add_argument("--test-per-class", type=int, default=50, help="images, of the cutouts")
    data.add_argument("--image-size", type=int, help="pixels; CIFAR has 32")
    data.add_argument("--test-fraction", type=float, default=0.2, help="of a folder without train/")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--classifier",
        nargs="+",
        default=["linear", "causal_norm"],
        metavar="NAME",
        help=f"of {', '.join(CLASSIFIER_NAMES)} (default: linear causal_norm)",
    )
    model.add_argument("--arch", help="a ResNet of torchvision, or CIFAR's resnet8, 20, 32, …")
    model.add_argument("--stem-stride", type=int, help="1, 2 or 4 (default: by image size)")
    model.add_argument("--num-heads", type=int, default=2, help="K")
    model.add_argument("--tau", type=float, default=16.0, help="temperature of the logits")
    model.add_argument("--gamma", type=float, default=1 / 32, help="added to weight norms")
    model.add_argument("--mu", type=float, default=0.9998, help="decay of the feature mean")

    training = parser.add_argument_group("training")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--loss", default="cross_entropy", help=f"of {', '.join(LOSSES)}")
    training.add_argument("--loss-options", nargs="+", default=[], metavar="NAME=VALUE")
    training.add_argument("--epochs", type=int)
    training.add_argument("--batch-size", type=int)
    training.add_argument("--lr", type=float)
    training.add_argument("--weight-decay", type=float, default=5e-4)
    training.add_argument("--warmup-epochs", type=float)

    post = parser.add_argument_group("after training")
    post.add_argument(
        "--post",
        nargs="*",
        metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: all that fit)",
    )
    post.add_argument("--alpha", type=number_or_auto, nargs="+", help="of TDE: numbers or auto")
    post.add_argument("--tau-norm", type=float, nargs="+", default=[0.5], help="τ of τ-norm")
    post.add_argument("--retrain-epochs", type=int, help="of cRT and LWS")

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="of PyTorch (default: the GPU, if there is one)")
    machine.add_argument("--jobs", type=int, help="runs at a time (default: 1 per CPU core)")
    machine.add_argument("--workers", type=int, default=2, help="processes that read files")
    machine.add_argument("--output", help=f"new folder (default: {OUTPUT}, or {OUTPUT}_2, …)")
    args = parser.parse_args()
    for key, value in DEFAULTS[args.data].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.stem_stride is None:
        args.stem_stride = 1 if args.image_size <= 48 else 2 if args.image_size <= 96 else 4
    return args


def parse_options(pairs):
    """``p=0.8 q=2`` → ``{"p": 0.8, "q": 2}``."""
    options = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            separator = ""
        if not name or not separator:
            raise InputError(f"--loss-options: expected NAME=NUMBER, got {pair!r}")
    return options


def check_args(args):
    """Refuse what no training can have, before anything is read."""
    if args.batch_size < 2:
        raise InputError("--batch-size must be at least 2: batch norm compares images")
    at_least_1 = ("epochs", "batch_size", "retrain_epochs", "jobs", "test_per_class", "image_size")
    for key in (*at_least_1, "num_heads"):
        if getattr(args, key) is not None and getattr(args, key) < 1:
            raise InputError(
                f"--{key.replace('_', '-')} must be at least 1, got {getattr(args, key)}"
            )
    for seed in args.seeds:
        if not 0 <= seed < 2**32:
            raise InputError(f"--seeds must be in [0, 2³²), got {seed}")
    if args.largest_class is not None and args.largest_class < 1:
        raise InputError(f"--largest-class must be at least 1, got {args.largest_class}")
    if not 0 < args.tau < float("inf"):
        raise InputError(f"--tau must be positive, got {args.tau}")
    if not 0 <= args.mu < 1:
        raise InputError(f"--mu must be in [0, 1), got {args.mu}")
    for key in ("lr", "weight_decay", "warmup_epochs", "workers", "gamma"):
        value = getattr(args, key)
        if not 0 <= value < float("inf"):
            raise InputError(f"--{key.replace('_', '-')} must be at least 0, got {value}")
    for key, values in (("--alpha", args.alpha), ("--tau-norm", args.tau_norm)):
        for value in values:
            if value != AUTO and not 0 <= value < float("inf"):
                raise InputError(f"{key} must be at least 0, got {value}")
    if args.loss not in LOSSES:
        raise InputError(f"--loss must be one of {', '.join(LOSSES)}, got {args.loss!r}")
    for name in args.classifier:
        if name not in CLASSIFIER_NAMES:
            raise InputError(f"--classifier must be of {', '.join(CLASSIFIER_NAMES)}, got {name!r}")
    if args.data != "cutouts" and not args.root:
        raise InputError(f"--data {args.data} needs --root")
    if args.data == "list":
        if not args.train_list or not args.test_list:
            raise InputError("--data list needs --train-list and --test-list")
        if args.imbalance_factor is not None or args.largest_class is not None:
            raise InputError("a list is long-tailed already: leave --imbalance-factor out")
    if args.data.startswith("cifar") and args.image_size != 32:
        raise InputError(f"CIFAR has images of 32 pixels, --image-size is {args.image_size}")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device} cannot be used: {error}") from error


def load(args, seed):
    """The benchmark that the arguments ask for."""
    factor, largest = args.imbalance_factor, args.largest_class
    if args.data == "cutouts":
        return cutout_benchmark(
            args.classes, largest or 300, factor, args.test_per_class, args.image_size, seed
        )
    if args.data == "folder":
        return folder_benchmark(
            args.root, args.image_size, factor, largest, args.test_fraction, seed
        )
    if args.data == "list":
        return list_benchmark(args.train_list, args.test_list, args.root, args.image_size)
    return cifar_benchmark(args.data, args.root, factor, largest, seed)


def describe(benchmark):
    """What the data is, for the log and metrics.json."""
    counts = benchmark.train_counts
    return {
        "classes": len(counts),
        **{f"{k}_classes": int(v.sum()) for k, v in split_classes(counts).items()},
        "train_images": len(benchmark.train),
        "largest_class": int(counts.max()),
        "smallest_class": int(counts.min()),
        "test_images": len(benchmark.test),
        "splits": benchmark.origin,
    }


def choose_output(asked):
    """The folder for results, where no others are."""
    if asked is None:
        names = itertools.chain([OUTPUT], (f"{OUTPUT}_{i}" for i in itertools.count(2)))
        return next(name for name in names if not os.path.exists(name))
    if os.path.exists(os.path.join(asked, "metrics.json")):
        raise InputError(f"--output {asked} holds the results of another run: name a new folder")
    return asked


@exit_on_input_error
def main():
    args = parse_args()
    setup_logger(name="tde_det")
    start = time.perf_counter()
    args.classifier, args.seeds = list(dict.fromkeys(args.classifier)), sorted(set(args.seeds))
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_args(args)
    args.output = choose_output(args.output)
    options = parse_options(args.loss_options)
    activation = LOSSES[args.loss].activation
    asked = args.post is not None
    if not asked:
        args.post = [
            m for m in METHODS if not all(why_not(m, c, activation) for c in args.classifier)
        ]
    check_methods(args.post, args.classifier, activation)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    runs = len(args.classifier) * len(args.seeds)
    jobs = min(args.jobs or (cores if args.device == "cpu" else 1), runs)
    schedule = Schedule(
        args.epochs, args.batch_size, args.lr, args.weight_decay, args.warmup_epochs
    )
    settings = Settings(
        arch=args.arch,
        stem_stride=args.stem_stride,
        num_heads=args.num_heads,
        tau=args.tau,
        gamma=args.gamma,
        mu=args.mu,
        loss=args.loss,
        loss_options=options,
        schedule=schedule,
        methods=MethodSettings(
            args.post,
            args.alpha,
            args.tau_norm,
            schedule._replace(epochs=args.retrain_epochs, warmup_epochs=0.0),
        ),
        machine=Machine(torch.device(args.device), args.workers),
        threads=max(1, cores // jobs),
        output=args.output,
    )
    benchmarks = {args.seeds[0]: load(args, args.seeds[0])}
    data = describe(benchmarks[args.seeds[0]])
    for name in args.classifier:  # find out now what cannot be built
        build(name, benchmarks[args.seeds[0]], settings)
    try:
        os.makedirs(args.output, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {args.output} cannot be made: {error.strerror}") from error
    print(
        f"{data['classes']} classes: {data['many_classes']} many (> {MANY_ABOVE} training images), "
        f"{data['medium_classes']} medium, {data['few_classes']} few (< {FEW_BELOW}). "
        f"{data['train_images']} training images, {data['largest_class']} to "
        f"{data['smallest_class']} per class; {data['test_images']} test images. {data['splits']}",
        flush=True,
    )

    finished, table = [], ""
    for result in run_all(
        args.classifier,
        args.seeds,
        lambda seed: benchmarks.pop(seed, None) or load(args, seed),
        settings,
        jobs,
    ):
        finished.append(result)
        description = {"arguments": vars(args), "data": data}
        table = write_results(args.output, description, finished, args.classifier)
    if asked:
        for name, skipped in {f["classifier"]: f["skipped"] for f in finished}.items():
            for method, reason in skipped.items():
                print(f"left out for {name}: {method} ({reason})")
    print(f"\n{table}\n\n{time.perf_counter() - start:.0f} s; results are in {args.output}")


if __name__ == "__main__":
    main()
