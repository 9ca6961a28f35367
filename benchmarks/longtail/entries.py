"""The rows that are done, as results.csv has them."""

import statistics
from typing import List, NamedTuple

from .results import Line, Results
from .rows import SEEDS, rows


class Entry(NamedTuple):
    """A row that is done.

    Attributes:
        training, family: which.
        lines: of results.csv, the first seed's and those of others with equal parameters.
    """

    training: str
    family: str
    lines: List[Line]

    def values(self, metric: str) -> List[float]:
        return [float(line[metric] or "nan") for line in self.lines]

    def mean(self, metric: str) -> float:
        return statistics.mean(self.values(metric))

    def shown(self, metric: str) -> str:
        """Mean ± standard deviation; ¹ for one seed."""
        values = self.values(metric)
        if len(values) == 1:
            return f"{values[0]:.1f} ¹"
        return f"{self.mean(metric):.1f} ± {statistics.stdev(values):.1f}"


def entries(results: Results, shape: str) -> List[Entry]:
    """The rows that are done, the highest box AP first."""
    found = []
    for training, family in rows():
        known = {"shape": shape, "row": training, "adjust": family, "split": "table"}
        first = results.lines(**known, seed=SEEDS[0])
        if first:
            same = {key: first[-1][key] for key in ("lr", "iterations", "setting")}
            found.append(Entry(training, family, results.lines(**known, **same)))
    return sorted(found, key=lambda entry: -entry.mean("box_AP"))
