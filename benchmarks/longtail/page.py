"""docs/benchmark.md and its plots, made of results.csv and classes.csv alone."""

from pathlib import Path
from typing import Dict, List, Optional, Sequence

from tde_det.atomic_file import atomic_file

from .entries import Entry, entries
from .headline import headline, headline_table, write_headline
from .results import Line, Results
from .rows import BY_CLASS, BY_NAME, SEEDS, row_title, rows
from .shapes import SHAPES

METRICS = {
    "box AP": "box_AP",
    "AP_r": "box_APr",
    "AP_c": "box_APc",
    "AP_f": "box_APf",
    "mask AP": "mask_AP",
    "mask AP_r": "mask_APr",
}
SHOWN = {
    "small": "60 classes, on a CPU",
    "redrawn": "small with other images, and other classes rare",
    "photographs": "58 kinds of clothing, on a CPU",
    "full": "1,203 classes, on a GPU",
}
TEXT = (Path(__file__).parent / "page.md").read_text()


def _part(name: str) -> str:
    """What stands in page.md after the mark of this name."""
    return TEXT.split(f"<!-- {name} -->")[1].split("<!-- ")[0]


def table(found: Sequence[Entry]) -> List[str]:
    lines = [
        f"| method | setting | rate | iterations | {' | '.join(METRICS)} | AP gained |",
        "|---|---|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    plain = {entry.training: entry for entry in found if entry.family == "none"}
    for entry in found:
        line, title = entry.lines[0], row_title(entry.training, entry.family)
        is_adjusted = entry.family != "none" and entry.training in plain
        cells = [
            title,
            f"`{line['setting']}`{' ²' * entry.at_edge}" if is_adjusted else "",
            line["lr"],
            line["iterations"],
            *map(entry.shown, METRICS.values()),
            entry.gain(plain[entry.training], METRICS["box AP"]) if is_adjusted else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def missing(found: Sequence[Entry], shape: str) -> List[str]:
    """The rows that are not there yet."""
    wanted = [row for row in rows() if row[0] in SHAPES[shape].rows]
    done = {(entry.training, entry.family) for entry in found}
    names = []
    for name, training in BY_NAME.items():
        lacking = [row for row in wanted if row[0] == name and row not in done]
        if 2 < len(lacking) == 1 + len(training.adjust):
            names.append(
                f"{training.title} with {len(training.adjust)} kinds of adjustment and none"
            )
        else:
            names += [row_title(*row) for row in lacking]
    if not names:
        return ["No row is missing."]
    left = f"{len(wanted) - len(done)} of {len(wanted)} rows"
    return [f"**Missing: {left}:** {'; '.join(names)}."]


def curve(results: Results, shape: str, training: str, metric: str = "box_AP") -> Dict[int, float]:
    """A metric on the tuning half by iterations, with the rate that was chosen."""
    known = {"shape": shape, "row": training, "adjust": "none", "seed": SEEDS[0], "split": "tuning"}
    lines = results.lines(**known)
    lengths = {int(line["iterations"]) for line in lines}
    last = [line for line in lines if int(line["iterations"]) == max(lengths, default=0)]
    if len(lengths) < 2:
        return {}
    chosen = [line for line in lines if line["lr"] == last[-1]["lr"]]
    return dict(sorted((int(x["iterations"]), float(x[metric] or 0)) for x in chosen))


def _ap(line: Line) -> float:
    return float(line["box_AP"] or 0)


def tuning(results: Results, shape: str) -> List[str]:
    """What each training was tried with: rates, then lengths."""
    first = SHAPES[shape].iterations
    lines = [
        f"| training | rate: AP after {first} iterations | iterations: AP (AP_r) |",
        "|---|---|---|",
    ]
    for name, training in BY_NAME.items():
        known = {"shape": shape, "row": name, "adjust": "none", "split": "tuning"}
        trials = results.lines(**known, seed=SEEDS[0], iterations=first)
        if trials:
            rates = sorted((float(line["lr"]), line["box_AP"]) for line in trials)
            cells = [training.title, "; ".join(f"{r:g}: {ap or 'diverged'}" for r, ap in rates)]
            rare = curve(results, shape, name, "box_APr")
            lengths = curve(results, shape, name).items()
            cells.append("; ".join(f"{n:,}: {ap:.2f} ({rare[n]:.1f})" for n, ap in lengths))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def start(results: Results) -> Optional[str]:
    """Where the small shape starts, and what its rows have without that; None if not measured."""
    words = {}
    for shape in ("imagenet", "small"):
        for row in ("linear", "deconfounded"):
            ap, rare = (curve(results, shape, row, m) for m in ("box_AP", "box_APr"))
            if not ap:
                return None
            n = max(ap)
            words[f"{shape}_{row}"] = f"{ap[n]:.1f}/{rare[n]:.1f} after {n:,} iterations"
    return _part("start").format(**words)


def done(found: Sequence[Entry], classes: Results, shape: str, folder: Path) -> List[str]:
    """The table of the rows that are done, and its plots."""
    from .plots import plot_classes, plot_rows

    short = headline(found)
    lines = ["### In short", "", *headline_table(short), "", "### All rows", ""] if short else []
    lines += [*table(found), "", "¹ One seed. Others: mean ± standard deviation of three.", ""]
    if any(entry.at_edge for entry in found):
        lines += ["² The largest value that was tried: a larger one may be better.", ""]
    plot_rows({row_title(e.training, e.family): e for e in found}, folder / f"{shape}_rows.png")
    words = "Box AP against AP_r; bars are standard deviations over seeds"
    lines += [f"![{words}]({folder.name}/{shape}_rows.png)", ""]
    aps = {
        row_title(*row): classes.lines(shape=shape, row=row[0], adjust=row[1]) for row in BY_CLASS
    }
    if any(aps.values()):
        plot_classes(
            {title: its for title, its in aps.items() if its}, folder / f"{shape}_classes.png"
        )
        lines += [f"![AP of each class]({folder.name}/{shape}_classes.png)", ""]
    origins = sorted({(line["hardware"], line["commit"]) for e in found for line in e.lines})
    for machine in dict.fromkeys(hardware for hardware, _ in origins):
        commits = ", ".join(c for hardware, c in origins if hardware == machine)
        lines += [f"Measured on {machine}, at {commits}.", ""]
    return lines


def tried(results: Results, shape: str, folder: Path) -> List[str]:
    """Rates and lengths, of rows that are not done too."""
    from .plots import plot_curves

    lines = ["### Rates and lengths", "", *_part("tuning").strip().splitlines()]
    lines += ["", *tuning(results, shape), ""]
    curves = {t.title: curve(results, shape, name) for name, t in BY_NAME.items()}
    known = {title: its for title, its in curves.items() if its}
    if known:
        plot_curves(known, folder / f"{shape}_curves.png")
        lines += [f"![Learning curves]({folder.name}/{shape}_curves.png)", ""]
    return lines


def section(results: Results, classes: Results, shape: str, folder: Path) -> List[str]:
    """All that is known of a shape."""
    found = entries(results, shape)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"## {shape.capitalize()}: {SHOWN[shape]}", ""]
    pretraining = SHAPES[shape].pretraining
    if pretraining and f"<!-- {shape} -->" in TEXT:
        lines += [_part(shape).strip().format(iterations=pretraining[2]), ""]
    lines += done(found, classes, shape, folder) if found else []
    lines += [*missing(found, shape), ""]
    if results.lines(shape=shape, split="tuning"):
        lines += tried(results, shape, folder)
    return lines


def write_page(results: Results, classes: Results, path: Path, readme: Path) -> None:
    """Write the page, its plots into a folder of its name beside it, and the README's table."""
    lines = [_part("rules").strip(), ""]
    why = start(results)
    lines += [why.strip(), ""] if why else []
    for shape in SHOWN:
        lines += section(results, classes, shape, path.with_suffix(""))
    with atomic_file(str(path)) as file:
        file.write("\n".join([*lines, _part("log").lstrip()]).encode())
    write_headline(headline(entries(results, "small")), readme)
