"""The rows that are done, as results.csv has them."""

import statistics
from typing import List, NamedTuple, Sequence

from tde_det.adjustments import parse_chains

from .results import Line, Results
from .rows import SEEDS, rows


class Entry(NamedTuple):
    """A row that is done.

    Attributes:
        training, family: which.
        lines: of results.csv, the first seed's and those of others with equal parameters.
        tuning_ap: box AP of the first seed on the tuning half; -1 if it is not known.
        at_edge: whether an option has the largest value that was tried.
    """

    training: str
    family: str
    lines: List[Line]
    tuning_ap: float
    at_edge: bool

    def values(self, metric: str) -> List[float]:
        return [float(line[metric] or "nan") for line in self.lines]

    def mean(self, metric: str) -> float:
        return statistics.mean(self.values(metric))

    def deviation(self, metric: str) -> float:
        """Standard deviation over seeds; 0 for one seed."""
        return statistics.stdev(self.values(metric)) if len(self.lines) > 1 else 0.0

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


def _values(setting: str) -> List[float]:
    """The options' values: ``"ncm temperature=8 + norcal gamma=0.1"`` → ``[8, 0.1]``."""
    (chain,) = parse_chains(setting)
    return [float(value) for step in chain for value in step.options.values()]


def _at_edge(setting: str, tried: Sequence[str]) -> bool:
    """Whether a larger value of an option might be better. A smaller one than all is "none"."""
    columns = zip(*map(_values, tried))
    return any(
        value == max(values) > min(values) for value, values in zip(_values(setting), columns)
    )


def entries(results: Results, shape: str) -> List[Entry]:
    """The rows that are done, the highest box AP first."""
    found = []
    for training, family in rows():
        known = {"shape": shape, "row": training, "adjust": family, "split": "table"}
        first = results.lines(**known, seed=SEEDS[0])
        if first:
            model = {key: first[-1][key] for key in ("lr", "iterations")}
            setting = first[-1]["setting"]
            tried = results.lines(**{**known, **model, "split": "tuning"}, seed=SEEDS[0])
            tuning = [float(x["box_AP"] or -1) for x in tried if x["setting"] == setting]
            lines = results.lines(**known, **model, setting=setting)
            at_edge = _at_edge(setting, [x["setting"] for x in tried])
            found.append(Entry(training, family, lines, (tuning or [-1.0])[-1], at_edge))
    return sorted(found, key=lambda entry: -entry.mean("box_AP"))
