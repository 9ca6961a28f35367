"""The plots of docs/benchmark.md."""

from pathlib import Path
from typing import Any, List, Mapping, Tuple

from matplotlib.figure import Figure

from .results import Line

COLOURS = ("black", "tab:blue", "tab:red")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # equal data gives equal files


def plot_rows(found: Mapping[str, Any], path: Path) -> None:
    """AP against AP_r of every row; named are trainings, and what no row beats in both.

    Those have bars of one standard deviation over their seeds. Where names have no room, some stay
    away: the table has them.
    """
    figure = Figure((7, 5), dpi=120, layout="constrained")
    ax = figure.subplots()
    points = {title: (e.mean("box_APr"), e.mean("box_AP")) for title, e in found.items()}
    for label, colour, has_tde in (("with TDE", "tab:red", True), ("without", "grey", False)):
        its = [point for title, point in points.items() if ("TDE" in title) == has_tde]
        ax.plot([x for x, _ in its], [y for _, y in its], "o", color=colour, ms=4, label=label)
    sides = (("right", (-3, 3)), ("left", (4, -2)))  # a name's alignment, and offset from its point
    taken: List[Tuple[str, float]] = []  # sides, and APs of the rows whose names stand there
    line = 0.03 * (ax.get_ylim()[1] - ax.get_ylim()[0])  # the height of a name
    for title, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        beaten = any(u >= x and v >= y and (u, v) != (x, y) for u, v in points.values())
        if not beaten or "+" not in title:
            rare, all_classes = found[title].deviation("box_APr"), found[title].deviation("box_AP")
            ax.errorbar(x, y, all_classes, rare, color="silver", lw=0.6, zorder=0)
            for side, offset in sides:
                if all(abs(y - other) > line for its, other in taken if its == side):
                    taken.append((side, y))
                    style: Any = {"ha": side, "fontsize": "xx-small"}
                    ax.annotate(title, (x, y), offset, textcoords="offset points", **style)
                    break
    ax.margins(x=0.4)  # for the names
    ax.set_xlabel("box AP_r")
    ax.set_ylabel("box AP")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    _save(figure, path)


def plot_classes(aps: Mapping[str, List[Line]], path: Path) -> None:
    """AP of every class against its training images."""
    figure = Figure((7, 4), dpi=120, layout="constrained")
    ax = figure.subplots()
    for (title, lines), colour in zip(aps.items(), COLOURS):
        known = [line for line in lines if line["AP"]]
        images = [int(line["train_images"]) for line in known]
        ax.plot(images, [float(x["AP"]) for x in known], "o", color=colour, ms=3, label=title)
    ax.set_xscale("log")
    ax.set_xlabel("training images of the class")
    ax.set_ylabel("box AP of the class")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    _save(figure, path)


def plot_curves(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Box AP on the tuning half against the iterations of training."""
    figure = Figure((7, 4), dpi=120, layout="constrained")
    ax = figure.subplots()
    for number, (title, curve) in enumerate(curves.items()):
        style = ("o-", "s--", "^:")[number // 10 % 3]
        ax.plot([*curve], [*curve.values()], style, ms=3, lw=1, label=title)
    ax.set_xlabel("iterations, each point a training of its own length")
    ax.set_ylabel("box AP, tuning half")
    ax.grid(alpha=0.3)
    if curves:
        ax.legend(fontsize="xx-small", ncols=2)
    _save(figure, path)
