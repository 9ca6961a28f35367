"""Several classifiers on several seeds, each run in a process of its own."""

import itertools
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from detectron2.utils.logger import setup_logger

from ..activations import prior_logit
from ..adjustments import TDE, Step, parse_chains
from ..errors import InputError
from ..losses import LOSSES, ClassificationLoss
from .images import Benchmark
from .methods import chain_name, evaluate, find_conflict
from .model import LINEAR, ImageClassifier, build_backbone, build_classifier
from .settings import RunSettings
from .training import build_criterion, train


def choose_device(name: Optional[str]) -> str:
    """The device of this name, or without one the GPU if there is one.

    Raises:
        InputError: it cannot be used.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device} cannot be used: {error}") from error
    return device


def choose_chains(
    texts: Optional[Sequence[str]], defaults: Sequence[str], names: Sequence[str], loss: str
) -> List[List[Step]]:
    """Read chains of adjustments, or those defaults that fit a classifier. See `parse_chains`.

    Raises:
        InputError: a chain cannot be read, or follows none of the classifiers ``names``.
    """
    try:
        chains = [c for text in (defaults if texts is None else texts) for c in parse_chains(text)]
    except ValueError as error:
        raise InputError(str(error)) from error
    chosen = []
    for chain in chains:
        conflicts = [find_conflict(chain, name, LOSSES[loss].activation) for name in names]
        if not all(conflicts):
            chosen.append(chain)
        elif texts is not None:
            reasons = "; ".join(dict.fromkeys(map(str, conflicts)))
            raise InputError(f"{chain_name(chain)} cannot be used: {reasons}")
    return chosen


def build(
    name: str, benchmark: Benchmark, settings: RunSettings
) -> Tuple[ImageClassifier, ClassificationLoss]:
    """The untrained model and its criterion.

    Raises:
        InputError: a setting is out of its range.
    """
    counts, schedule = benchmark.train_counts, settings.schedule
    steps = schedule.epochs * math.ceil(len(benchmark.train) / schedule.batch_size)
    criterion = build_criterion(settings.loss, counts, steps, settings.loss_options)
    backbone, feature_dim = build_backbone(settings.arch, settings.stem_stride)
    prior = 0.0
    if not criterion.activation.endswith("softmax"):  # classes that are trained each for itself
        prior = prior_logit(1 / len(counts), criterion.activation)
    try:
        classifier = build_classifier(name, feature_dim, len(counts), settings, prior)
        model = ImageClassifier(name, backbone, classifier)
        if name != LINEAR:
            heads = settings.normalized.get("num_heads", 2)
            model.tde = TDE(feature_dim, heads, settings.mu, exempt=False)
    except ValueError as error:
        raise InputError(str(error)) from error
    return model, criterion


def run(
    name: str, seed: int, benchmark: Benchmark, settings: RunSettings, output: str
) -> Dict[str, Any]:
    """Train and evaluate one classifier; saves ``model_{name}_seed{seed}.pth`` in ``output``.

    For ``accuracy`` and ``skipped`` see :func:`evaluate`.
    """
    machine = settings.machine
    start, title = time.perf_counter(), f"{name}, seed {seed}"
    torch.set_num_threads(machine.threads)
    torch.manual_seed(seed)
    model, criterion = build(name, benchmark, settings)
    model.to(machine.device)
    criterion.to(machine.device)
    train(model, criterion, benchmark.train, settings, title)
    accuracy, skipped, retrained = evaluate(model, criterion.activation, benchmark, settings, title)
    checkpoint = {
        "model": model.state_dict(),
        "retrained": {method: c.state_dict() for method, c in retrained.items()},
        "classifier": name,
        "arch": settings.arch,
        "stem_stride": settings.stem_stride,
        "class_names": benchmark.class_names,
    }
    torch.save(checkpoint, os.path.join(output, f"model_{name}_seed{seed}.pth"))
    result = {"classifier": name, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    return {**result, "accuracy": accuracy, "skipped": skipped}


def run_all(
    names: Sequence[str],
    seeds: Sequence[int],
    load: Callable[[int], Benchmark],
    settings: RunSettings,
    output: str,
    jobs: int,
) -> Iterator[Dict[str, Any]]:
    """Runs of every classifier (by name) on every seed, as they finish.

    A seed is that of data, which ``load`` brings, and training alike, so that classifiers are
    compared on equal data. ``jobs`` is the number of processes at a time; 1: this one.
    """
    loaded = ((seed, load(seed)) for seed in seeds)
    tasks = ((n, seed, data, settings, output) for seed, data in loaded for n in names)
    if jobs == 1:
        yield from itertools.starmap(run, tasks)
        return
    # Processes of one thread finish more steps than one process of many: the networks are small.
    log = partial(setup_logger, name="tde_det")
    with ProcessPoolExecutor(jobs, get_context("spawn"), log) as pool:
        futures = [pool.submit(run, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
