"""What a training or an evaluation has left in its folder."""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode

from ..engine import setup_tool
from ..errors import InputError
from ..evaluation import Detections

RESULTS = "lvis_instances_results.json"
_POINTS = 400  # of a training curve, at most

Curves = Dict[str, Tuple[List[int], List[float]]]


@dataclasses.dataclass
class Run:
    """A run.

    Attributes:
        name: what the page calls it.
        path: of its folder, or of a results file.
        detections: None until they are read or made.
    """

    name: str
    path: str
    detections: Optional[Detections] = None

    def file(self, *names: str) -> Optional[str]:
        """The path of a file in the folder, None if there is none."""
        path = os.path.join(self.path, *names)
        return path if os.path.isfile(path) else None

    def results(self, dataset_name: str = "") -> Optional[str]:
        """The results file: the path itself, or where evaluation writes it."""
        if os.path.isfile(self.path):
            return self.path
        places = ("inference", dataset_name), ("inference",), ()
        return next(filter(None, (self.file(*place, RESULTS) for place in places)), None)

    def checkpoint(self) -> Optional[str]:
        """``model_final.pth``, or the last checkpoint."""
        last = self.file("last_checkpoint")
        name = ""
        if last:
            with open(last, errors="replace") as f:
                name = f.read().strip()
        return self.file("model_final.pth") or (self.file(name) if name else None)

    def config(self, opts: Sequence[str], needs: Sequence[str] = ()) -> CfgNode:
        """The run's config with its checkpoint, and with changes.

        Args:
            opts, needs: see :func:`~tde_det.engine.setup_tool`.
        """
        weights = self.checkpoint()
        named = ["MODEL.WEIGHTS", weights] if weights else []
        return setup_tool(os.path.join(self.path, "config.yaml"), [*named, *opts], needs)

    def sweep(self) -> List[Dict[str, str]]:
        """The rows of ``sweep.csv``, if there is one."""
        path = self.file("sweep.csv")
        if not path:
            return []
        with open(path, newline="", encoding="utf-8", errors="replace") as f:
            return list(csv.DictReader(f))

    def curves(self) -> Curves:
        """By name, iterations and values of what ``metrics.json`` logs, at most 400 of each."""
        path = self.file("metrics.json")
        values: Dict[str, Dict[int, float]] = {}
        lines = Path(path).read_bytes().splitlines() if path else []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                iteration = int(entry.pop("iteration"))
                numbers = {key: float(value) for key, value in entry.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                if number == 1 and line.startswith(b'{"bbox"'):  # that of an evaluation
                    return {}
                raise InputError(
                    f"{path}: line {number} is none that a training writes, a json object with an "
                    "iteration and numbers"
                ) from None
            for key, value in numbers.items():
                if math.isfinite(value):
                    values.setdefault(key, {})[iteration] = value  # a resumed run's last
        curves = {}
        for key, points in sorted(values.items()):
            iterations = sorted(points)
            chosen = np.linspace(0, len(iterations) - 1, min(len(iterations), _POINTS)).round()
            kept = [iterations[i] for i in chosen.astype(int)]
            curves[key] = kept, [points[i] for i in kept]
        return curves


def find_runs(texts: Sequence[str]) -> List[Run]:
    """The runs that a command line names, as ``PATH`` or ``NAME=PATH``.

    Raises:
        InputError: one is not there, or has the name of another.
    """
    runs: List[Run] = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or os.path.exists(text):
            name, path = os.path.basename(os.path.abspath(text)), text
        if not os.path.exists(path):
            raise InputError(f"the run {path} does not exist")
        if not name or name in [run.name for run in runs]:
            raise InputError(
                f"{text}: two runs are called {name!r}; name them: FIRST=FOLDER SECOND=FOLDER"
                if name
                else f"{text} gives a run no name"
            )
        runs.append(Run(name, path))
    return runs


def needed_results(run: Run, dataset_name: str) -> str:
    """The results file of a run.

    Raises:
        InputError: there is none.
    """
    path = run.results(dataset_name)
    if path is None:
        raise InputError(
            f"{run.path} has no inference/{RESULTS}: evaluate its checkpoint with "
            "tools/train_net.py --eval-only"
        )
    return path


def dataset_of(run: Run, cfg: Any) -> str:
    """The one data set that a run is evaluated on.

    Raises:
        InputError: there are none, or several.
    """
    if len(cfg.DATASETS.TEST) != 1:
        raise InputError(
            f"{run.path}: DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}; choose one by --dataset"
        )
    return cfg.DATASETS.TEST[0]
