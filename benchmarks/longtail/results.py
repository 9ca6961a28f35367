"""results.csv: a line for each setting of each model on each half of the validation images.

classes.csv: a line for each class and some of the rows.
"""

import contextlib
import csv
import fcntl
import os
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

from tde_det.evaluation.lvis_eval import METRICS

Line = Dict[str, str]
KEY = ("shape", "row", "adjust", "seed", "lr", "iterations", "split", "setting")
ORIGIN = ("config", "overrides", "commit", "hardware", "seconds", "cpu_seconds")
TASKS = {"bbox": "box", "segm": "mask"}
CLASS_KEY = ("shape", "row", "adjust", "name")
CLASS_COLUMNS = (*CLASS_KEY, "setting", "frequency", "train_images", "AP")
COLUMNS = (*KEY, *ORIGIN, *(f"{task}_{name}" for task in TASKS.values() for name in METRICS))


class Results:
    """The lines of a csv file, written whenever some are added. Threads and processes may share it.

    Args:
        path: of the file.
        columns: its columns, of which ``key`` are the first.
        key: a line with the same values here replaces an earlier one, all others are kept.
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS, key: Sequence[str] = KEY):
        self._path, self._columns, self._names = path, columns, key
        self._lines = self._read()

    def _key(self, line: Mapping[str, str]) -> Tuple[str, ...]:
        return tuple(line[name] for name in self._names)

    def _read(self) -> Dict[Tuple[str, ...], Line]:
        if not self._path.exists():
            return {}
        with open(self._path, newline="") as f:
            return {self._key(line): line for line in csv.DictReader(f)}

    def lines(self, **values: Any) -> List[Line]:
        """The lines with these values, the newest last."""
        wanted = {name: str(value) for name, value in values.items()}
        return [line for line in self._lines.values() if wanted.items() <= line.items()]

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, or replace those with the same keys; columns without a value are empty."""
        with _locked(self._path.parent):
            known = self._read()  # what others have added, too
            for values in lines:
                line = {name: str(values.get(name, "")) for name in self._columns}
                if known.get(self._key(line)) != line:
                    known.pop(self._key(line), None)  # the newest stand last
                    known[self._key(line)] = line
            unfinished = self._path.with_name(self._path.name + ".unfinished")
            with open(unfinished, "w", newline="") as f:
                writer = csv.DictWriter(f, self._columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(known.values())
            os.replace(unfinished, self._path)
            self._lines = known


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other threads and processes out."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def columns_of(metrics: Mapping[str, str]) -> Line:
    """``bbox/AP`` and so on as columns, with two digits."""
    return {
        f"{TASKS[task]}_{name}": value and f"{float(value):.2f}"
        for (task, name), value in ((key.split("/"), v) for key, v in metrics.items())
    }
