"""The README's table: the rows that say which method to take, of all that are done."""

from pathlib import Path
from typing import Callable, List, Optional, Sequence

from tde_det.atomic_file import atomic_file

from .entries import Entry
from .rows import BY_NAME, row_title

COLUMNS = {"AP": "box_AP", "AP_r": "box_APr", "AP_c": "box_APc", "AP_f": "box_APf"}
OURS = "prototypes + norcal"  # what docs/choosing.md recommends
START, END = "<!-- headline -->", "<!-- /headline -->"  # where the table stands in a page


def _is_rival(entry: Entry) -> bool:
    """Of others' methods alone: no normalised classifier, no prototypes."""
    is_linear = "MODEL.TDE.CLASSIFIER" not in BY_NAME[entry.training].opts
    return is_linear and "prototypes" not in entry.family


def headline(found: Sequence[Entry]) -> List[Entry]:
    """The linear row, the best of others' methods, ours, and the best of all.

    What is best is so on the tuning half. Empty if one of them is missing.

    Args:
        found: the rows that are done.
    """
    found = sorted(found, key=lambda entry: -entry.tuning_ap)

    def first(entries: Sequence[Entry], accept: Callable[[Entry], bool]) -> Optional[Entry]:
        return next((entry for entry in entries if accept(entry)), None)

    def named(training: str, family: str) -> Optional[Entry]:
        return first(found, lambda entry: (entry.training, entry.family) == (training, family))

    rivals = [entry for entry in found if _is_rival(entry)]
    chosen = [
        named("linear", "none"),
        first(rivals, lambda e: e.training != "linear" and e.family == "none"),
        first(rivals, lambda e: e.training == "linear" and e.family != "none"),
        first(rivals, lambda e: e.training != "linear" and e.family != "none"),
        named("linear", OURS),
        *(named("deconfounded", family) for family in ("none", "tde", OURS)),
    ]
    done = [entry for entry in chosen if entry is not None]
    if len(done) < len(chosen):
        return []
    return done if found[0] in done else [*done, found[0]]


def headline_table(chosen: Sequence[Entry]) -> List[str]:
    """The rows as a table: mean ± standard deviation, iterations and number of seeds."""
    titles = ("box", *COLUMNS, "iterations", "seeds")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for entry in chosen:
        values = [entry.shown(metric).removesuffix(" ¹") for metric in COLUMNS.values()]
        line, title = entry.lines[0], row_title(entry.training, entry.family)
        after = "+" if BY_NAME[entry.training].start else ""  # those of the row it starts from
        iterations = f"{after}{int(line['iterations']):,}"
        cells = [title, *values, iterations, str(len(entry.lines))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write_headline(chosen: Sequence[Entry], page: Path) -> None:
    """Write the table into a page, between the marks that it has for it."""
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if chosen and end:
        text = "\n".join([before + start, *headline_table(chosen), end + after])
        with atomic_file(str(page)) as file:
            file.write(text.encode())
