#!/usr/bin/env python
"""TDE where one class has much of all objects: mini_lvis with such a class, and photographs.

One de-confounded model of each data set is evaluated on the half of the validation images that the
benchmark in longtail/ reports. Those of mini_lvis start from that benchmark's pretrained detector;
that of the photographs is one of its rows. Interrupt it at any time: the same command continues.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple

import torch
from longtail.results import Results
from longtail.rows import BY_NAME
from longtail.shapes import SHAPES
from longtail.steps import Model, Steps
from matplotlib.figure import Figure

from tde_det.adjustments.dominance import class_alignment
from tde_det.data.mini_lvis.build import Settings

ROOT = Path(__file__).parent.parent
SHARES = (0.05, 0.15, 0.3, 0.5)
ALPHAS = (0, 0.5, 1, 1.5)
DECONFOUNDED = BY_NAME["deconfounded"]
RATE, ITERATIONS = 0.08, 1200  # in longtail/ the best rate, and within 1 AP of convergence
# Which objects d̂ is the mean of; "classes": the mean of the class means.
MEANS = {"objects": "d̂ as trained", "classes": "d̂ of class means"}
STAGE = "roi_heads.box_predictor."


class Case(NamedTuple):
    """A data set and the model that is evaluated.

    Attributes:
        share: of the training objects that one class has.
        label: of that class.
    """

    title: str
    steps: Steps
    model: Model
    share: float
    label: int


def mini_lvis(output: Path) -> Iterator[Case]:
    """Data sets with one large class, built, and a model trained on each."""
    found = sorted((output / "small/pretraining").glob("*/*/*/without_classifier.pth"))
    if not found:
        raise SystemExit("error: run benchmarks/longtail/run.py first, for its pretrained detector")
    for share in SHARES:
        data = Settings(val_images=800, largest_share=share)  # but for that as "small"
        shape = SHAPES["small"]._replace(data=data)
        steps = Steps(shape, f"share{100 * share:g}", output, float("inf"), 1)
        model = Model(DECONFOUNDED, RATE, ITERATIONS, 1)
        steps.train(model, start=str(found[0]))
        yield _case("mini_lvis", steps, model, "mini_lvis_train.json")


def photographs(output: Path) -> Iterator[Case]:
    """The photographs, with the benchmark's model of the first seed."""
    known = {"shape": "photographs", "row": "deconfounded", "adjust": "none", "split": "table"}
    lines = Results(Path(__file__).parent / "longtail/results.csv").lines(**known, seed=1)
    if not lines:
        raise SystemExit("error: run benchmarks/longtail/run.py --shape photographs first")
    steps = Steps(SHAPES["photographs"], "photographs", output, float("inf"), 1)
    rate, iterations = float(lines[-1]["lr"]), int(lines[-1]["iterations"])
    model = Model(DECONFOUNDED, rate, iterations, 1)
    yield _case("photographs", steps, model, "ccp/ccp_lvis_train.json")


DATA = {"mini_lvis": mini_lvis, "photographs": photographs}


def _case(title: str, steps: Steps, model: Model, annotations: str) -> Case:
    content = json.loads((steps.folder / "longtail_data" / annotations).read_text())
    counts = Counter(annotation["category_id"] for annotation in content["annotations"])
    ids = sorted(c["id"] for c in content["categories"])
    # In mini_lvis, the last class is the one that has been given its share.
    index = len(ids) - 1 if title == "mini_lvis" else ids.index(counts.most_common(1)[0][0])
    return Case(title, steps, model, counts[ids[index]] / sum(counts.values()), index)


def checkpoint(case: Case, mean: str) -> Path:
    """The model with d̂ of these objects."""
    if mean == "objects":
        return case.steps.checkpoint(case.model)
    return case.steps.calibrated(case.model, "tde", "--class-balanced")


def alignment(path: Path, index: int) -> Tuple[float, float]:
    """a_i of a class and the highest of another."""
    state = torch.load(path, weights_only=True)["model"]
    weight, mean = state[f"{STAGE}cls_score.weight"], f"{STAGE}adjustments.tde.feature_mean"
    values = class_alignment(weight, state[mean], 2)[:-1].tolist()
    return values.pop(index), max(values)


def measure(case: Case, mean: str) -> List[Dict[str, float]]:
    """For every α, box AP, AP of the rare and the frequent classes and of the one."""
    weights, found = checkpoint(case, mean), []
    for alpha in ALPHAS:
        opts = ["MODEL.TDE.ALPHA", alpha, "MODEL.WEIGHTS", weights]
        lines = case.steps.classes(case.model, opts, f"{mean}-{alpha:g}")
        aps = [(line["frequency"], float(line["AP_bbox"] or "nan")) for line in lines]
        known = [(f, ap) for f, ap in aps if ap == ap]
        row = {"AP": statistics.mean(ap for _, ap in known), "one": aps[case.label][1]}
        row.update({f"AP_{g}": statistics.mean(a for f, a in known if f == g) for g in "rf"})
        found.append(row)
    return found


Curves = Dict[str, Dict[str, List[Dict[str, float]]]]  # by d̂, then by data set


def plot(curves: Curves, path: Path) -> None:
    """How TDE changes AP, with each d̂: a line for every data set."""
    figure = Figure((9, 3.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for ax, (words, by_data) in zip(panels, curves.items()):
        for title, rows in by_data.items():
            ax.plot(ALPHAS, [row["AP"] - rows[0]["AP"] for row in rows], "o-", ms=3, label=title)
        ax.set_title(words, fontsize="medium")
        ax.set_xlabel("α")
        ax.grid(alpha=0.3)
    panels[0].set_ylabel("change of box AP")
    panels[0].legend(fontsize="small", title="share of one class")
    figure.savefig(path, metadata={"Software": None})


def table(cases: Iterable[Case], path: Path) -> List[str]:
    """All figures as a table; a plot goes to ``path``."""
    lines = [
        "| data | share | d̂ | a of it | next a | α | AP | AP_r | AP_f | AP of it |",
        "|---" * 10 + "|",
    ]
    curves: Curves = {words: {} for words in MEANS.values()}
    for case in cases:
        for mean, words in MEANS.items():
            own, other = alignment(checkpoint(case, mean), case.label)
            rows = measure(case, mean)
            curves[words][f"{case.title}, {case.share:.0%}"] = rows
            for alpha, row in zip(ALPHAS, rows):
                values = " | ".join(f"{row[k]:.1f}" for k in ("AP", "AP_r", "AP_f", "one"))
                start = f"| {case.title} | {case.share:.0%} | {words} | {own:.2f} | {other:.2f} |"
                lines.append(f"{start} {alpha:g} | {values} |")
                print(lines[-1], file=sys.stderr, flush=True)
    plot(curves, path)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, default="mini_lvis", help="default: mini_lvis")
    parser.add_argument("--output", type=Path, default=Path("output/longtail"), help="of models")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/when_tde_hurts.png")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # what is built says so
        lines = table(DATA[args.data](args.output), args.plot)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
