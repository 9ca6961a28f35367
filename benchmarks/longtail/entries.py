"""The rows that are done, as results.csv has them."""

import statistics
from typing import List, NamedTuple, Sequence

from .results import Line, Results
from .rows import SEEDS, rows


class Entry(NamedTuple):
    """A row that is done.

    Attributes:
        training, family: which.
        lines: of results.csv, the first seed's and those of others with equal parameters.
        tuning_ap: box AP of the first seed on the tuning half; -1 if it is not known.
    """

    training: str
    family: str
    lines: List[Line]
    tuning_ap: float

    def values(self, metric: str) -> List[float]:
        return [float(line[metric] or "nan") for line in self.lines]

    def mean(self, metric: str) -> float:
        return statistics.mean(self.values(metric))

    def shown(self, metric: str) -> str:
        """Mean ± standard deviation; ¹ for one seed."""
        return _shown(self.values(metric))

    def gain(self, plain: "Entry", metric: str) -> str:
        """Likewise, what an adjustment adds to the same models, of which some seeds are better."""
        before = {line["seed"]: ap for line, ap in zip(plain.lines, plain.values(metric))}
        aps = zip(self.lines, self.values(metric))
        pairs = [(ap, before[line["seed"]]) for line, ap in aps if line["seed"] in before]
        return _shown([after - old for after, old in pairs], "+") if pairs else ""


def _shown(values: Sequence[float], sign: str = "") -> str:
    if len(values) == 1:
        return f"{values[0]:{sign}.1f} ¹"
    return f"{statistics.mean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"


def entries(results: Results, shape: str) -> List[Entry]:
    """The rows that are done, the highest box AP first."""
    found = []
    for training, family in rows():
        known = {"shape": shape, "row": training, "adjust": family, "split": "table"}
        first = results.lines(**known, seed=SEEDS[0])
        if first:
            same = {key: first[-1][key] for key in ("lr", "iterations", "setting")}
            tuning = results.lines(**{**known, **same, "split": "tuning"}, seed=SEEDS[0])
            tuning_ap = float(tuning[-1]["box_AP"] or -1) if tuning else -1.0
            found.append(Entry(training, family, results.lines(**known, **same), tuning_ap))
    return sorted(found, key=lambda entry: -entry.mean("box_AP"))
