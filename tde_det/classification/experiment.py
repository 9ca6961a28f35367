"""Several classifiers on several seeds, each run in a process of its own, and their table."""

import csv
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from ..errors import InputError
from ..losses import prior_logit
from .accuracy import SPLITS
from .images import Benchmark, Machine
from .methods import MethodSettings, evaluate
from .model import ImageClassifier, build_backbone, build_classifier
from .training import Schedule, build_criterion, train


class Settings(NamedTuple):
    """What a run depends on besides its data, classifier and seed.

    Attributes:
        arch, stem_stride: see :func:`build_backbone`.
        num_heads, tau, gamma, mu: see :class:`CausalNormClassifier`.
        loss, loss_options: see :func:`build_criterion`.
        schedule: of the training.
        methods: what follows it.
        machine: what computes.
        threads: of PyTorch on the CPU.
        output: folder for the models.
    """

    arch: str
    stem_stride: int
    num_heads: int
    tau: float
    gamma: float
    mu: float
    loss: str
    loss_options: Dict[str, Any]
    schedule: Schedule
    methods: MethodSettings
    machine: Machine
    threads: int
    output: str


def build(name: str, benchmark: Benchmark, settings: Settings):
    """The untrained model and its criterion.

    Raises:
        InputError: a setting is out of its range.
    """
    counts = benchmark.train_counts
    steps = settings.schedule.epochs * math.ceil(
        len(benchmark.train) / settings.schedule.batch_size
    )
    criterion = build_criterion(settings.loss, counts, steps, settings.loss_options)
    backbone, feature_dim = build_backbone(settings.arch, settings.stem_stride)
    if feature_dim % settings.num_heads:
        raise InputError(
            f"--num-heads must divide the {feature_dim} features of {settings.arch}, got "
            f"{settings.num_heads}"
        )
    prior = None
    if not criterion.activation.endswith("softmax"):  # classes that are trained each for itself
        prior = prior_logit(1 / len(counts), criterion.activation.removeprefix("objectness_"))
    classifier = build_classifier(
        name,
        feature_dim,
        len(counts),
        num_heads=settings.num_heads,
        tau=settings.tau,
        gamma=settings.gamma,
        mu=settings.mu,
        prior_bias=prior,
    )
    return ImageClassifier(backbone, classifier), criterion


def run(name: str, seed: int, benchmark: Benchmark, settings: Settings) -> Dict[str, Any]:
    """Train and evaluate one classifier; saves ``model_{name}_seed{seed}.pth``.

    Returns:
        ``classifier``, ``seed``, ``seconds``, ``accuracy`` and ``skipped``, see :func:`evaluate`.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(seed)
    start, title = time.perf_counter(), f"{name}, seed {seed}"
    model, criterion = build(name, benchmark, settings)
    model.to(settings.machine.device), criterion.to(settings.machine.device)
    train(model, criterion, benchmark.train, settings.schedule, settings.machine, title)
    trained = time.perf_counter() - start
    accuracy, skipped, retrained = evaluate(
        name,
        model,
        criterion.activation,
        benchmark,
        settings.methods,
        settings.machine,
        title,
    )
    torch.save(
        {
            "model": model.state_dict(),
            "retrained": {method: c.state_dict() for method, c in retrained.items()},
            "class_names": benchmark.class_names,
            "arch": settings.arch,
            "stem_stride": settings.stem_stride,
            "classifier": name,
        },
        os.path.join(settings.output, f"model_{name}_seed{seed}.pth"),
    )
    seconds = {"training": round(trained, 1), "all": round(time.perf_counter() - start, 1)}
    return {
        "classifier": name,
        "seed": seed,
        "seconds": seconds,
        "accuracy": accuracy,
        "skipped": skipped,
    }


def run_all(
    names: Sequence[str],
    seeds: Sequence[int],
    load: Callable[[int], Benchmark],
    settings: Settings,
    jobs: int,
) -> Iterator[Dict[str, Any]]:
    """Runs of every classifier on every seed, as they finish.

    Args:
        names: classifiers.
        seeds: of data and training alike, so that classifiers are compared on equal data.
        load: from a seed to its data.
        settings: of all runs.
        jobs: processes at a time; 1: this one.
    """
    if jobs == 1:
        for seed in seeds:
            benchmark = load(seed)
            for name in names:
                yield run(name, seed, benchmark, settings)
        return
    # Processes of one thread finish more steps than one process of many: the networks are small.
    log = partial(setup_logger, name="tde_det")
    with ProcessPoolExecutor(jobs, get_context("spawn"), log) as pool:
        futures = []
        for seed in seeds:
            benchmark = load(seed)
            futures += [pool.submit(run, name, seed, benchmark, settings) for name in names]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def summarise(
    runs: Sequence[Dict[str, Any]], names: Sequence[str]
) -> Dict[str, Dict[str, Dict[str, Optional[float]]]]:
    """Mean and standard deviation (n − 1) over seeds of every row and split; None for no value."""
    runs = sorted(runs, key=lambda r: (names.index(r["classifier"]), r["seed"]))
    rows: Dict[str, List[Dict[str, float]]] = {}
    for one in runs:
        for row, accuracy in one["accuracy"].items():
            rows.setdefault(row, []).append(accuracy)
    summary: Dict[str, Dict[str, Dict[str, Optional[float]]]] = {}
    for row, accuracies in rows.items():
        summary[row] = {}
        for split in SPLITS:
            values = np.array([accuracy[split] for accuracy in accuracies])
            values = values[~np.isnan(values)]
            summary[row][split] = {
                "mean": float(values.mean()) if len(values) else None,
                "std": float(values.std(ddof=1)) if len(values) > 1 else None,
            }
    return summary


def format_summary(summary: Dict[str, Dict[str, Dict[str, Optional[float]]]]) -> str:
    """A table: one line per row, mean ± standard deviation per split, in percent."""

    def cell(value: Dict[str, Optional[float]]) -> str:
        if value["mean"] is None:
            return ""
        return f"{value['mean']:.1f}" + (
            f" ± {value['std']:.1f}" if value["std"] is not None else ""
        )

    lines = [[row, *(cell(values[split]) for split in SPLITS)] for row, values in summary.items()]
    align = ("left", *("right" for _ in SPLITS))
    return tabulate(lines, headers=["accuracy, %", *SPLITS], tablefmt="pipe", colalign=align)


def write_results(
    folder: str, description: Dict[str, Any], runs: Sequence[Dict[str, Any]], names: Sequence[str]
) -> str:
    """Write ``metrics.json``, ``accuracy.csv`` and ``table.md`` of the runs so far.

    Returns:
        the table.
    """
    summary = summarise(runs, names)
    table = format_summary(summary)
    without_nan = [
        {
            **one,
            "accuracy": {
                row: {k: None if math.isnan(v) else v for k, v in accuracy.items()}
                for row, accuracy in one["accuracy"].items()
            },
        }
        for one in runs
    ]
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as f:
        content = {**description, "summary": summary, "runs": without_nan}
        json.dump(content, f, indent=1, ensure_ascii=False)
    with open(os.path.join(folder, "accuracy.csv"), "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["method", "seed", *SPLITS])
        for one in runs:
            for row, accuracy in one["accuracy"].items():
                cells = ["" if math.isnan(accuracy[s]) else f"{accuracy[s]:.4f}" for s in SPLITS]
                writer.writerow([row, one["seed"], *cells])
    with open(os.path.join(folder, "table.md"), "w", encoding="utf-8") as f:
        f.write(table + "\n")
    return table
