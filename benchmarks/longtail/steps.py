"""The steps of the benchmark, each a process, done once: a step is done when its file is there.

<output>/<shape>/longtail_data/                  the data set
<output>/<shape>/longtail_others/                that of the pretraining
<output>/<shape>/features/                       what its frozen parts make of the training images
<output>/<shape>/<training>/lr<rate>/iter<iterations>/seed<seed>/
    model_final.pth, trained.json                a trained model; its seconds, commit, hardware
    tuning-….json, table-….json, classes-….csv   metrics on half of the validation images
"""

import csv
import fcntl
import json
import multiprocessing
import os
import platform
import re
import runpy
import subprocess
import sys
import threading
import time
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from tde_det.adjustments import parse_chains
from tde_det.data.mini_lvis.build import Settings
from tde_det.modeling.build import needs_class_means

from .data import FOLDER, Photographs, build_data, write_json
from .rows import BY_NAME, Training
from .train import CONTINUE, DIVERGED, DONE, start_from

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STEP_LOCK, FEATURES = "step.lock", "features"
Metrics = Dict[str, Dict[str, str]]  # by setting, what tools/sweep.py writes: bbox/AP and so on


class OutOfTime(Exception):
    """The time that the caller gave is over; what was done is kept."""


class Shape(NamedTuple):
    """A size of the benchmark.

    Attributes:
        config: a file of this folder.
        data: the data set.
        rates: the learning rates that are tried first, ascending.
        iterations: of the shortest training, with which rates are compared.
        least_iterations: of the longest training at least.
        settings_per_pass: over the images; more would take longer than a piece of a run.
        pretraining: data, learning rate and iterations of a training that all others start from.
        opts: keys and values that differ from the config.
        heads_alone: whether backbone, FPN and RPN stay as the pretraining leaves them.
        rows: names of the trainings that are worth their time.
    """

    config: str
    data: Union[Settings, Photographs]
    rates: Tuple[float, ...]
    iterations: int
    least_iterations: int = 0
    settings_per_pass: int = 1000
    pretraining: Optional[Tuple[Union[Settings, Photographs], float, int]] = None
    opts: Tuple[str, ...] = ()
    heads_alone: bool = False
    rows: Tuple[str, ...] = tuple(BY_NAME)


class Model(NamedTuple):
    """A training with one rate, number of iterations and seed."""

    training: Training
    rate: float
    iterations: int
    seed: int

    @property
    def folder(self) -> str:
        return f"{self.training.name}/lr{self.rate:g}/iter{self.iterations}/seed{self.seed}"


def origin() -> Dict[str, str]:
    """What figures are measured with: the commit, with a + if its code has been changed."""
    import torch

    def git(*words: str) -> str:
        result = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return result.stdout.strip()

    code = ("tde_det", "tools", "benchmarks/longtail/*.py", "benchmarks/longtail/*.yaml")
    commit = git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", *code))
    if torch.cuda.is_available():
        return {"commit": commit, "hardware": torch.cuda.get_device_name()}
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    name = model[1] if model else platform.machine()
    return {"commit": commit, "hardware": f"{name}, {os.cpu_count()} cores"}


def _hold(path: Path) -> IO[str]:
    """A file that no other process has locked, locked."""
    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for the processes of an earlier run to end", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _call(command: List[str], log: str, lock: str, datasets: str) -> None:
    """Run a script as ``python`` would, with its output in a file, holding a lock.

    The environment is otherwise that of the first steps of this process.
    """
    os.environ["DETECTRON2_DATASETS"] = datasets
    with open(lock) as held, open(log, "a") as file:
        fcntl.flock(held, fcntl.LOCK_SH)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        os.chdir(ROOT)
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def _names_in(settings: Sequence[str]) -> Set[str]:
    """The adjustments of all settings."""
    return {step.name for text in settings for chain in parse_chains(text) for step in chain}


class Steps:
    """Runs steps, or finds their results.

    Args:
        shape, name: what is run.
        output: folder of all shapes.
        until: seconds since the epoch at which to stop.
        threads: of each process.
    """

    def __init__(self, shape: Shape, name: str, output: Path, until: float, threads: int):
        self.shape, self.name, self.until, self._origin = shape, name, until, origin()
        self.folder = (output / name).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        source = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).absolute()
        # Processes are forked off one that has imported everything: they start at once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tde_det.engine", "timm"])
        # To start a process is to ask for the exit status of all others, which can be read once.
        self._mutex = threading.Lock()
        self._lock = _hold(self.folder / "run.lock")
        _hold(self.folder / STEP_LOCK).close()  # no process of a run that was killed is left
        build_data(shape.data, self.folder / FOLDER, source)

    def train(self, model: Model, shorter: Optional[Model] = None, start: str = "") -> bool:
        """Train a model; False if its loss became infinite.

        Args:
            shorter: a trained model with fewer iterations; this one goes on from where it began to
                decay, being the same training until there.
            start: the checkpoint to start from; "" for the weights that the config names.
        """
        folder = self.folder / model.folder
        if not (folder / "trained.json").exists():
            if shorter is not None:
                start_from(folder, self.folder / shorter.folder)
            n = model.iterations
            opts = ["SOLVER.BASE_LR", model.rate, "SOLVER.MAX_ITER", n, "SEED", model.seed]
            opts += ["SOLVER.STEPS", f"({round(0.75 * n)}, {round(0.92 * n)})"]
            opts += ["SOLVER.CHECKPOINT_PERIOD", 10**9, "OUTPUT_DIR", folder]
            opts += ["MODEL.WEIGHTS", start] if start else []
            words = ["--until", self.until] if self.until < float("inf") else []
            if start and self.shape.heads_alone:
                words += ["--heads-alone", self.folder / FEATURES]
            status = self._run(model, "train.log", [HERE / "train.py"], [*opts, *words])
            if status == CONTINUE:
                raise OutOfTime
            spent = json.loads((folder / "spent.json").read_text()) if status == DONE else {}
            write_json(folder / "trained.json", {**spent, **self._origin})
            for file in (*folder.glob("state_?.pth"), *folder.glob("start.pth")):
                file.unlink()
        return "seconds" in self.trained(model)

    def trained(self, model: Model) -> Dict[str, Any]:
        """Commit, hardware and, unless it diverged, the seconds that training took."""
        return json.loads((self.folder / model.folder / "trained.json").read_text())

    def checkpoint(self, model: Model, name: str = "model_final.pth") -> Path:
        return self.folder / model.folder / name

    def forget(self, model: Model) -> None:
        """Remove the checkpoints of a model that was not chosen."""
        for file in (self.folder / model.folder).glob("*.pth"):
            file.unlink()

    def evaluate(
        self, model: Model, half: str, settings: Sequence[str], masks: bool = True
    ) -> Metrics:
        """Metrics of a model with each setting of adjustments on half of the validation images."""
        found: Metrics = {}
        size = self.shape.settings_per_pass
        for part in (settings[i : i + size] for i in range(0, len(settings), size)):
            found.update(self._evaluate(model, half, part, masks))
        return found

    def _evaluate(self, model: Model, half: str, settings: Sequence[str], masks: bool) -> Metrics:
        path = self.folder / model.folder / f"{half}{'' if masks else '-boxes'}.json"
        known: Metrics = json.loads(path.read_text()) if path.exists() else {}
        missing = [setting for setting in settings if setting not in known]
        if missing:
            weights = self.checkpoint(model)
            if any(map(needs_class_means, _names_in(missing))):
                weights = self.calibrated(model, "ncm + prototypes")
            opts = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", f"('longtail_{half}',)"]
            opts += ["MODEL.MASK_ON", masks, "OUTPUT_DIR", path.with_suffix("")]
            self._run(model, f"{half}.log", ["tools/sweep.py"], ["--adjust", *missing, *opts])
            with open(path.with_suffix("") / "sweep.csv", newline="") as f:
                rows = {row["adjustments"]: row for row in csv.DictReader(f)}
            known.update({s: {k: v for k, v in r.items() if "/" in k} for s, r in rows.items()})
            write_json(path, known)
        return {setting: known[setting] for setting in settings}

    def calibrated(self, model: Model, chain: str, *options: str) -> Path:
        """The checkpoint with what tools/calibrate.py measures for a chain of adjustments."""
        path = self.checkpoint(model, f"{'-'.join((chain, *options)).replace(' ', '')}.pth")
        if not path.exists():
            unfinished = path.with_suffix(".unfinished.pth")
            unfinished.unlink(missing_ok=True)
            opts = ["MODEL.WEIGHTS", self.checkpoint(model), "OUTPUT_DIR", path.with_suffix("")]
            words = ["--adjust", chain, *options, "--output", unfinished, *opts]
            self._run(model, "calibrate.log", ["tools/calibrate.py"], words)
            unfinished.replace(path)
        return path

    def classes(self, model: Model, opts: Sequence[Any], name: str) -> List[Dict[str, str]]:
        """AP and training images of every class on the table's half, with other ``opts``.

        Args:
            name: of what the options make of the model.
        """
        path = self.folder / model.folder / f"classes-{name}" / "inference/per_category_ap.csv"
        if not path.exists():
            words = ["--eval-only", "MODEL.WEIGHTS", self.checkpoint(model), *opts]
            words += ["OUTPUT_DIR", path.parent.parent, "MODEL.MASK_ON", "False"]
            self._run(model, f"classes-{name}.log", ["tools/train_net.py"], words)
        with open(path, newline="") as f:
            return list(csv.DictReader(f))

    def _run(self, model: Model, log: str, script: List[Any], words: List[Any]) -> int:
        """Run a tool with a model's config; what it prints goes to ``log``.

        Returns:
            its status: 0, or what train.py may say.

        Raises:
            OutOfTime: it did not end in time.
            RuntimeError: it failed.
        """
        if time.time() >= self.until:
            raise OutOfTime
        config = ["--config-file", HERE / self.shape.config]
        opts = [*self.shape.opts, *model.training.opts]
        command = [str(word) for word in (*script, *config, *opts, *words)]
        path = self.folder / model.folder / log
        path.parent.mkdir(parents=True, exist_ok=True)
        trains = script[0] == HERE / "train.py"
        extra = 120 if trains else 0  # it stops by itself, and saves then
        for _ in range(2):  # once more after a signal, such as that of a full memory
            status = self._wait_for(command, str(path), extra)
            if status < 0 and trains and (path.parent / "spent.json").exists():
                status = DONE  # that is its last act: the signal came while the process was ending
            if status >= 0:
                break
        if status not in (DONE, CONTINUE, DIVERGED):
            end = path.read_text()[-2000:]
            raise RuntimeError(f"{' '.join(command)}\n{end}\n(status {status}; all is in {path})")
        return status

    def _wait_for(self, command: List[str], log: str, extra: float) -> int:
        """The exit status of a script, negative if a signal ended it."""
        locked = str(self.folder / STEP_LOCK)
        arguments = (command, log, locked, str(self.folder))
        process = self._context.Process(target=_call, args=arguments)
        wait = self.until - time.time() + extra
        with self._mutex:
            process.start()
        ended = connection.wait([process.sentinel], None if wait == float("inf") else max(wait, 0))
        with self._mutex:
            if not ended:
                process.kill()
            process.join()
        if not ended or process.exitcode is None:
            raise OutOfTime
        return process.exitcode
