"""Top-1 accuracy of all classes, and of those with many, some and few training images.

Source of the splits: Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

MANY_ABOVE = 100
FEW_BELOW = 20
SPLITS = ("all", "many", "medium", "few")

Accuracy = Dict[str, Optional[float]]  # of every split, in percent
Summary = Dict[str, Dict[str, Dict[str, Optional[float]]]]  # by row, split, and "mean" or "std"


def split_classes(train_counts: Tensor) -> Dict[str, Tensor]:
    """Which classes each split has: ``int[C]`` training images → ``bool[C]`` per split."""
    many, few = train_counts > MANY_ABOVE, train_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


def accuracy_by_split(predicted: Tensor, labels: Tensor, train_counts: Tensor) -> Accuracy:
    """Accuracies in percent of classes ``int64[N]`` predicted for ``int64[N]`` labels.

    ``all``: over all images; ``many`` (> 100 of the ``int64[C]`` training images), ``medium`` and
    ``few`` (< 20): the mean of the classes' accuracies, None without such classes. A class without
    test images has no accuracy.
    """
    correct = (predicted == labels).double()
    images = torch.bincount(labels, minlength=len(train_counts))
    per_class = torch.bincount(labels, correct, minlength=len(train_counts)) / images
    accuracy: Accuracy = {"all": 100 * float(correct.mean())}
    for split, classes in split_classes(train_counts).items():
        members = per_class[classes & (images > 0)]
        accuracy[split] = 100 * float(members.mean()) if len(members) else None
    return accuracy


def summarise(runs: Sequence[Dict[str, Any]], names: Sequence[str]) -> Summary:
    """Mean and standard deviation (n − 1) over seeds of every row and split; None for no value.

    Rows are in the order of the classifiers' ``names``.
    """
    rows: Dict[str, List[Accuracy]] = {}
    for one in sorted(runs, key=lambda r: (names.index(r["classifier"]), r["seed"])):
        for row, accuracy in one["accuracy"].items():
            rows.setdefault(row, []).append(accuracy)
    summary: Summary = {row: {} for row in rows}
    for row, accuracies in rows.items():
        for split in SPLITS:
            values = [v for v in (a[split] for a in accuracies) if v is not None]
            mean = float(np.mean(values)) if values else None
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            summary[row][split] = {"mean": mean, "std": std}
    return summary


def _cell(mean: Optional[float], std: Optional[float]) -> str:
    return "" if mean is None else f"{mean:.1f}" + ("" if std is None else f" ± {std:.1f}")


def write_results(
    folder: str, description: Dict[str, Any], runs: Sequence[Dict[str, Any]], names: Sequence[str]
) -> str:
    """Write ``metrics.json`` and ``table.md`` of the runs so far; returns the Markdown table."""
    summary = summarise(runs, names)
    lines = [[row, *(_cell(**values[s]) for s in SPLITS)] for row, values in summary.items()]
    align = ("left", *("right" for _ in SPLITS))
    table = tabulate(lines, ["accuracy, %", *SPLITS], tablefmt="pipe", colalign=align)
    metrics = {**description, "summary": summary, "runs": list(runs)}
    text = json.dumps(metrics, indent=1, ensure_ascii=False)
    Path(folder, "metrics.json").write_text(text, encoding="utf-8")
    Path(folder, "table.md").write_text(table + "\n", encoding="utf-8")
    return table
