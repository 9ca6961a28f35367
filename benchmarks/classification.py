#!/usr/bin/env python
"""Image classifiers on 60 classes of the bundled drawings, each with a learning rate of its own.

Half of the test images tunes: learning rates, on the first seed, and the settings of adjustments,
on all. The table is of the other half. Interrupt it at any time: the same command continues.
"""

import argparse
import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

from tde_det.adjustments import parse_chains
from tde_det.classification.accuracy import Accuracy, accuracy_by_split, write_results
from tde_det.classification.cutout_images import cutout_benchmark
from tde_det.classification.experiment import build
from tde_det.classification.images import Benchmark
from tde_det.classification.methods import RETRAINING, chain_name, find_conflict, predict
from tde_det.classification.settings import Machine, RunSettings, Schedule
from tde_det.classification.training import train
from tde_det.errors import InputError
from tde_det.evaluation.recommend import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
RATES, MOST_RATES = (0.1, 0.2, 0.4), 6  # where the best stays at an edge, one beyond it is tried
PLAIN = "cross_entropy"
CLASSIFIERS = {"linear": "linear", "causal_norm": "de-confounded"}
WAYS = {PLAIN: "", "balanced_softmax": ", balanced softmax"}
WAYS.update({method: f" + {name}" for method, name in RETRAINING.items()})
# Those of tools/train_classifier.py.
SCHEDULE = Schedule(epochs=25, batch_size=128, lr=math.nan)
SETTINGS = RunSettings(
    arch="resnet8x2",
    stem_stride=2,
    normalized={"num_heads": 2, "tau": 16.0, "gamma": 1 / 32},
    mu=0.9998,
    loss=PLAIN,
    loss_options={},
    schedule=SCHEDULE,
    adjustments=[],
    retrain=(),
    retrain_schedule=SCHEDULE._replace(epochs=5, warmup_epochs=0.0),
    machine=Machine(),
)


class Run(NamedTuple):
    """A training, or what cRT or LWS makes of its result."""

    classifier: str
    loss: str
    rate: float
    seed: int
    retrain: str = ""
    retrain_rate: float = 0.0

    @property
    def name(self) -> str:
        words = [self.classifier, self.loss, f"lr{self.rate:g}", f"seed{self.seed}"]
        return "-".join(words + [self.retrain, f"lr{self.retrain_rate:g}"] * bool(self.retrain))

    def with_rate(self, rate: float) -> "Run":
        """The same with another learning rate of its last training."""
        return self._replace(retrain_rate=rate) if self.retrain else self._replace(rate=rate)


Accuracies = Dict[str, Dict[str, Accuracy]]  # by setting and half; {} if training diverged
Done = Dict[Run, Accuracies]


@functools.lru_cache(None)
def data(seed: int) -> Benchmark:
    return cutout_benchmark(test_per_class=100, seed=seed)


def halves(labels: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Where the test images of each half are: the first and the second half of every class.

    >>> halves(torch.tensor([0, 0, 1, 1]))["tuning"].tolist()
    [True, False, True, False]
    """
    within = torch.cat([torch.arange(n) for n in torch.bincount(labels).tolist()])
    tuning = within < torch.bincount(labels)[labels] // 2
    return {"tuning": tuning, "table": ~tuning}


def settings_of(classifier: str) -> Dict[str, List[str]]:
    """By family of adjustments, the settings that are tried."""
    families = {text: parse_chains(text) for text in FAMILIES}
    return {
        text: [chain_name(chain) or text for chain in chains]
        for text, chains in families.items()
        if not find_conflict(chains[0], classifier, "softmax")
    }


def perform(run: Run, folder: Path) -> None:
    """Train and evaluate; writes the checkpoint of a training, and NAME.json at the end."""
    start, seed = time.process_time(), run.seed
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    benchmark = data(seed)
    settings = SETTINGS._replace(loss=run.loss, schedule=SCHEDULE._replace(lr=run.rate))
    weights = folder / f"{run._replace(retrain='').name}.pth"
    model, criterion = build(run.classifier, benchmark, settings)
    try:
        if run.retrain:
            model.load_state_dict(torch.load(weights, weights_only=True))
            schedule = settings.retrain_schedule._replace(lr=run.retrain_rate)
            settings = settings._replace(retrain=[run.retrain], retrain_schedule=schedule)
        else:
            train(model, criterion, benchmark.train, settings, run.name)
            chains = [c for text in settings_of(run.classifier) for c in parse_chains(text) if c]
            settings = settings._replace(adjustments=chains if run.loss == PLAIN else [])
            torch.save(model.state_dict(), weights)
        predicted, *_ = predict(model, criterion.activation, benchmark, settings, run.name)
    except InputError as error:  # the loss became infinite
        print(error, file=sys.stderr)
        predicted = {}
    labels, counts = benchmark.test.labels, benchmark.train_counts
    found: Accuracies = {}
    for row, y in predicted.items():  # a retrained classifier's row comes after that of its start
        setting = "" if run.retrain else row.removeprefix(run.classifier).removeprefix(" + ")
        found[setting or "none"] = {
            half: accuracy_by_split(y[part], labels[part], counts)
            for half, part in halves(labels).items()
        }
    unfinished = folder / f"{run.name}.unfinished"
    result = {"run": run, "seconds": time.process_time() - start, "accuracy": found}
    unfinished.write_text(json.dumps(result))
    unfinished.replace(folder / f"{run.name}.json")


def read(folder: Path) -> Done:
    """The runs that are done."""
    results = (json.loads(path.read_text()) for path in folder.glob("*-seed*.json"))
    return {Run(*result["run"]): result["accuracy"] for result in results}


def tuned(done: Done, run: Run, setting: str = "none") -> float:
    """Accuracy on the tuning half; -1 if the training diverged."""
    return done[run][setting]["tuning"]["all"] or 0.0 if done[run] else -1.0


def search(done: Done, make: Callable[[float], Run]) -> Tuple[float, List[Run]]:
    """The best learning rate on the tuning half, or the runs that are needed to tell."""
    rates = list(RATES)
    while True:
        missing = [make(rate) for rate in rates if make(rate) not in done]
        if missing:
            return 0.0, missing
        best = max(rates, key=lambda rate: tuned(done, make(rate)))
        if min(rates) < best < max(rates) or len(rates) >= MOST_RATES:
            return best, []
        rates.append(2 * best if best == max(rates) else best / 2)


def plan(done: Done) -> Tuple[Dict[Tuple[str, str], List[Run]], List[Run]]:
    """The runs of the table, one for each seed, by classifier and way; and those still to do.

    Rates are those of the first seed.
    """
    chosen: Dict[Tuple[str, str], List[Run]] = {}
    missing: List[Run] = []

    def add(kind: str, way: str, make: Callable[[float], Run]) -> None:
        rate, needed = search(done, make)
        runs = [] if needed else [make(rate)._replace(seed=seed) for seed in SEEDS]
        missing.extend(needed or [run for run in runs if run not in done])
        chosen[kind, way] = runs

    for kind, way in itertools.product(CLASSIFIERS, WAYS):
        if way not in RETRAINING:
            add(kind, way, Run(kind, way, 0.0, SEEDS[0]).with_rate)
        elif chosen[kind, PLAIN] and set(chosen[kind, PLAIN]) <= set(done):
            add(kind, way, chosen[kind, PLAIN][0]._replace(retrain=way).with_rate)
    return chosen, missing


def rows(done: Done) -> Iterator[Tuple[str, List[Run], str]]:
    """Title, runs and setting of the table's rows; settings are chosen on the tuning half."""
    for (kind, way), runs in plan(done)[0].items():
        families = settings_of(kind).values() if way == PLAIN else [["none"]]
        for settings in families:
            best = max(settings, key=lambda s: sum(tuned(done, run, s) for run in runs))
            rate = f" (learning rate {runs[0].retrain_rate or runs[0].rate:g})"
            what = WAYS[way] + rate if best == "none" else f" + `{best}`"
            yield CLASSIFIERS[kind] + what, runs, best


def table(done: Done, folder: Path) -> str:
    """The Markdown table, which is also written into ``folder`` with all numbers."""
    lines = list(rows(done))
    runs: List[Dict[str, Any]] = [
        {
            "classifier": "",
            "seed": seed,
            "accuracy": {t: done[runs[i]][setting]["table"] for t, runs, setting in lines},
        }
        for i, seed in enumerate(SEEDS)
    ]
    return write_results(str(folder), {}, runs, [""])


def commit() -> str:
    """Results of other code are not taken for those of this one."""
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _prepare() -> None:
    """Of a process that performs runs: Ctrl-C ends it without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main(words: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--output", type=Path, help="folder (default: one for each commit)")
    args = parser.parse_args(words)
    folder = args.output or ROOT / "output/classification" / commit()
    folder.mkdir(parents=True, exist_ok=True)
    one = functools.partial(perform, folder=folder)
    with get_context("spawn").Pool(args.jobs, _prepare) as pool:
        while missing := plan(read(folder))[1]:
            for _ in pool.imap_unordered(one, sorted(missing, key=lambda run: run.seed)):
                pass
    seconds = [json.loads(path.read_text())["seconds"] for path in folder.glob("*-seed*.json")]
    print(table(read(folder), folder))
    print(f"\n{len(seconds)} runs, {sum(seconds) / 60:.0f} minutes of one core in all.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command continues")
