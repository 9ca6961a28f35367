"""The table and the plot of a sweep: one row, one point, for each chain of adjustments."""

import csv
import itertools
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..adjustments import Step
from .lvis_eval import METRICS

Chain = Sequence[Step]
Metrics = Dict[str, Dict[str, float]]  # of a task, in percent

PLOTTED = {"AP": "black", "APr": "tab:red", "APc": "tab:orange", "APf": "tab:blue"}
TASKS = {"bbox": "box AP", "segm": "mask AP"}
LINES = ("o-", "s--", "^:", "v-.")


def options_of(chain: Chain) -> Dict[str, Any]:
    """All options of a chain, by ``adjustment.option``."""
    return {f"{name}.{key}": value for name, options in chain for key, value in options.items()}


def write_table(path: str, results: Dict[str, Metrics], chains: Mapping[str, Chain]) -> None:
    """Write one row for each chain, with all digits; empty where there is nothing to measure.

    Args:
        path: of the csv.
        results: by the chain's title.
        chains: by title.
    """
    tasks = list(next(iter(results.values())))
    options = {title: options_of(chains[title]) for title in results}
    names = list(dict.fromkeys(name for values in options.values() for name in values))
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        columns = [f"{task}/{metric}" for task in tasks for metric in METRICS]
        writer.writerow(["adjustments", *names, *columns])
        for title, metrics in results.items():
            numbers = [metrics[task][metric] for task in tasks for metric in METRICS]
            cells = ["" if math.isnan(number) else repr(number) for number in numbers]
            writer.writerow([title, *(options[title].get(n, "") for n in names), *cells])


def best(results: Dict[str, Metrics], task: str) -> Optional[str]:
    """The chain with the highest AP, the first of equals; None if there is nothing to measure."""
    measured = [title for title, m in results.items() if not math.isnan(m[task]["AP"])]
    return max(measured, key=lambda title: results[title][task]["AP"], default=None)


def curves(chains: Mapping[str, Chain]) -> Dict[Tuple[str, str], Dict[str, List[str]]]:
    """Group chains for a plot.

    Returns:
        by the adjustments' names and the option along the axis (the first number that varies; ""
        if none does), curves: by their other options, the titles of their chains. A chain that does
        not have the option is alone, under its own title.
    """
    groups: Dict[str, List[str]] = {}
    for title, chain in chains.items():
        groups.setdefault(" + ".join(step.name for step in chain), []).append(title)
    plots: Dict[Tuple[str, str], Dict[str, List[str]]] = {}
    for names, titles in groups.items():
        options = {title: options_of(chains[title]) for title in titles}
        numbers: Dict[str, set] = {}
        for key, value in (item for values in options.values() for item in values.items()):
            if type(value) is float:
                numbers.setdefault(key, set()).add(value)
        axis = next((k for k, v in numbers.items() if len(v) > 1), next(iter(numbers), ""))
        plot = plots.setdefault((names, axis), {})
        for title in titles:
            others = {k: v for k, v in options[title].items() if k != axis}
            label = ", ".join(f"{k.split('.')[1]} = {v}" for k, v in others.items())
            if axis not in options[title]:  # a line across, by itself
                label = title
            plot.setdefault(label, []).append(title)
    return plots


def plot(results: Dict[str, Metrics], chains: Mapping[str, Chain], path: str) -> None:
    """Draw AP, AP_r, AP_c and AP_f against an option, by task (rows) and adjustments (columns).

    A chain without a number, such as ``tde``, is a line across its column.
    """
    from matplotlib.figure import Figure  # takes a second, which only this function needs
    from matplotlib.lines import Line2D

    tasks = list(next(iter(results.values())))
    plots = curves({title: chains[title] for title in results})
    figure = Figure((4.5 * len(plots), 3 * len(tasks) + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(len(tasks), len(plots), squeeze=False, sharey="row")
    for row, task in zip(axes, tasks):
        row[0].set_ylabel(TASKS.get(task, task))
        for ax, ((names, axis), lines) in zip(row, plots.items()):
            for style, (label, titles) in zip(itertools.cycle(LINES), lines.items()):
                values = [options_of(chains[title]).get(axis) for title in titles]
                in_legend = style[1:] if None in values else style
                ax.plot([], [], in_legend, color="grey", label=label or "other options: default")
                for metric, colour in PLOTTED.items():
                    heights = [results[title][task][metric] for title in titles]
                    if None in values:
                        ax.axhline(heights[0], color=colour, linestyle=style[1:])
                    else:
                        ax.plot(*zip(*sorted(zip(values, heights))), style, color=colour)
            ax.set_title(names or "none", fontsize="small")
            ax.set_xlabel(axis)
            if not axis:
                ax.set_xticks([])
            ax.grid(alpha=0.3)
            if len(lines) > 1:
                ax.legend(fontsize="x-small")
    entries = [Line2D([], [], color=colour, label=m) for m, colour in PLOTTED.items()]
    figure.legend(handles=entries, loc="outside upper center", ncols=4, fontsize="small")
    figure.savefig(path)
