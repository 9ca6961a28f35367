#!/usr/bin/env python
"""Train and judge every method alike on mini_lvis: one start, one budget, one seed.

All detectors start from the same backbone, RPN, box and mask heads, trained here first, and a new
classifier. Losses, classifiers and samplers then train all of it for the same number of iterations;
decoupled methods train the classifier of the cross-entropy row, for as long again; post-hoc
methods train nothing. What is there already in the output folder is not computed again.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import torch
from detectron2.engine import DefaultTrainer, default_argument_parser
from detectron2.utils.events import EventStorage
from timing import alternate

from tde_det.data.custom_sets import datasets_root
from tde_det.data.lvis_json import read_json
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, setup
from tde_det.losses import LOSSES

ROOT = Path(__file__).parent.parent
LINEAR = "mini_lvis_cascade_baseline"
TDE = "mini_lvis_cascade_tde"
# mini_lvis has 3,591 training images and 60 classes: EQL is to spare classes of up to 100 images as
# on LVIS, and the federated losses are to leave some classes out.
OPTIONS: Dict[str, Sequence[Any]] = {
    "eql": ("MODEL.LONG_TAIL.EQL.THRESHOLD", 100 / 3591),
    "federated": ("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 20),
    "softmax_federated": ("MODEL.LONG_TAIL.SOFTMAX_FEDERATED.NUM_SAMPLED", 20),
    "logit_adjustment": ("MODEL.LONG_TAIL.LOGIT_ADJUSTMENT.TAU", 0.5),
}
SAMPLER = "DATALOADER.SAMPLER_TRAIN"


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        group, title: what it is.
        config: its file in configs/.
        opts: keys and values that differ from the config.
        checkpoint: "start" to train from there, or the row whose weights are evaluated.
        adjust: what tools/calibrate.py adds to those weights.
    """

    group: str
    title: str
    config: str
    opts: Tuple[Any, ...] = ()
    checkpoint: str = "start"
    adjust: str = ""

    @property
    def folder(self) -> str:
        return "".join(c if c.isalnum() else "_" for c in f"{self.group} {self.title}".lower())


def rows() -> List[Row]:
    """All methods of the package."""
    ce = Row("loss", "cross_entropy", LINEAR)
    table = [ce]
    for name in LOSSES:
        if name != "cross_entropy":
            opts = ("MODEL.LONG_TAIL.LOSS", name, *OPTIONS.get(name, ()))
            title = f"{name} (τ = 0.5)" if name == "logit_adjustment" else name
            table.append(Row("loss", title, LINEAR, opts))
    factual = ("MODEL.TDE.ALPHA", 0.0)
    for name, title in (
        ("causal_norm", "de-confounded"),
        ("cosine", "cosine"),
        ("capsule", "capsule"),
    ):
        kind = () if name == "causal_norm" else ("MODEL.TDE.CLASSIFIER", name)
        trained = Row("classifier", f"{title} + TDE", TDE, kind)
        table += [
            Row("classifier", title, TDE, (*kind, *factual), checkpoint=trained.folder),
            trained,
        ]
    both = ("MODEL.LONG_TAIL.LOSS", "seesaw")
    table.append(Row("classifier", "de-confounded + TDE, seesaw", TDE, both))
    repeat = (SAMPLER, "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.03)
    table += [
        Row("sampler", "RFS", LINEAR, repeat),
        Row("sampler", "RFS, sqrt off", LINEAR, (*repeat, "DATALOADER.REPEAT_SQRT", False)),
        Row("sampler", "class-balanced", LINEAR, (SAMPLER, "ClassBalancedSampler")),
        Row("sampler", "square-root", LINEAR, (SAMPLER, "SquareRootSampler")),
        Row("sampler", "progressively-balanced", LINEAR, (SAMPLER, "ProgressivelyBalancedSampler")),
    ]
    for method in ("crt", "lws"):
        opts = ("MODEL.LONG_TAIL.DECOUPLE", method, SAMPLER, "ClassBalancedSampler")
        table.append(
            Row("decoupled", method.upper().replace("CRT", "cRT"), LINEAR, opts, ce.folder)
        )
    with_tde = Row("classifier", "de-confounded + TDE", TDE).folder
    for config, folder, title, chain in (
        (LINEAR, ce.folder, "τ-normalisation, τ = 0.5", "tau_norm tau=0.5"),
        (LINEAR, ce.folder, "τ-normalisation, τ = 1", "tau_norm tau=1"),
        (LINEAR, ce.folder, "NCM", "ncm"),
        (LINEAR, ce.folder, "NorCal, γ = 0.3", "norcal gamma=0.3"),
        (LINEAR, ce.folder, "NorCal, γ = 0.6", "norcal gamma=0.6"),
        (LINEAR, ce.folder, "logit adjustment, τ = 0.5", "logit_adjustment tau=0.5"),
        (LINEAR, ce.folder, "FRACAL", "fracal"),
        (TDE, with_tde, "TDE, direction estimated afterwards", "tde"),
        (TDE, with_tde, "TDE, then NorCal, γ = 0.3", "norcal gamma=0.3"),
    ):
        table.append(Row("post-hoc", title, config, (), folder, chain))
    return table


def run(*command: Any) -> None:
    """Run a tool of this repository; its output is shown if it fails."""
    arguments = [sys.executable, "-W", "ignore", *map(str, command)]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        print(f"{' '.join(arguments)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
        raise RuntimeError(f"{arguments[3]} failed; what was computed before is kept")


def common(iterations: int, seed: int) -> List[Any]:
    """The budget of all rows."""
    steps = (int(0.7 * iterations), int(0.9 * iterations))
    return [
        *("SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", str(steps), "SEED", seed),
        *("SOLVER.WARMUP_ITERS", max(1, iterations // 10)),
    ]


def make_start(folder: Path, iterations: int, seed: int) -> Path:
    """Train what all rows start from: a detector whose classifier is then thrown away."""
    path = folder / "start.pth"
    if not path.exists():
        config = f"configs/{LINEAR}.yaml"
        opts = [*common(iterations, seed), "OUTPUT_DIR", folder / "start", "DATASETS.TEST", "()"]
        run("tools/train_net.py", "--config-file", config, *opts)
        model = torch.load(folder / "start/model_final.pth", map_location="cpu", weights_only=False)
        kept = {k: v for k, v in model["model"].items() if ".cls_score." not in k}
        torch.save({"model": kept}, path)
    return path


def weights_of(row: Row, folder: Path, start: Path) -> Path:
    """What a row's training or calibration starts from."""
    return start if row.checkpoint == "start" else folder / row.checkpoint / "model_final.pth"


def evaluate(row: Row, folder: Path, start: Path, budget: List[Any]) -> Dict[str, Any]:
    """Box and mask metrics of a row, trained first where it has to be."""
    out = folder / row.folder
    metrics = out / "inference/metrics.json"
    if not metrics.exists():
        weights = weights_of(row, folder, start)
        command: List[Any] = ["tools/train_net.py", "--config-file", f"configs/{row.config}.yaml"]
        trains = row.checkpoint == "start" or row.group == "decoupled"
        if row.adjust:
            adjusted = out / "adjusted.pth"
            adjusted.unlink(missing_ok=True)
            run(
                *("tools/calibrate.py", "--config-file", f"configs/{row.config}.yaml"),
                *("--adjust", row.adjust, "--output", adjusted, "MODEL.WEIGHTS", weights),
            )
            weights = adjusted
        if not trains:
            command.append("--eval-only")
        run(*command, *budget, "OUTPUT_DIR", out, "MODEL.WEIGHTS", weights, *row.opts)
    return read_json(str(metrics))


def _step(trainer: DefaultTrainer) -> None:
    with EventStorage(trainer.iter):
        trainer.run_step()


@functools.lru_cache(maxsize=1)  # that of plain cross entropy, which all others are timed with
def _plain_trainer(*opts: str) -> DefaultTrainer:
    return _trainer(LINEAR, opts)


def _trainer(config: str, opts: Sequence[Any]) -> DefaultTrainer:
    args = default_argument_parser().parse_args([])
    args.config_file = str(ROOT / f"configs/{config}.yaml")
    args.opts = [str(value) for value in opts]
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=False)
    trainer.iter = 0
    trainer.model.train()
    return trainer


def relative_time(row: Row, start: Path, budget: List[Any], folder: Path, repeats: int) -> float:
    """Seconds per iteration of a row, relative to plain cross entropy: medians, taken in turn."""
    path = folder / row.folder / "relative_time.json"
    if path.exists():
        return float(json.loads(path.read_text()))
    opts = [*budget, "OUTPUT_DIR", folder / "timing", "MODEL.WEIGHTS"]
    stock = _plain_trainer(*map(str, [*opts, start]))
    own = _trainer(row.config, [*opts, weights_of(row, folder, start), *row.opts])
    plain, ours = alternate(lambda: _step(stock), lambda: _step(own), repeats)
    ratio = statistics.median(ours) / statistics.median(plain)
    path.write_text(json.dumps(ratio))
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="output/methods")
    parser.add_argument("--start-iterations", type=int, default=400)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--jobs", type=int, default=1, help="rows at a time; set OMP_NUM_THREADS to fit"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed iterations of each method")
    args = parser.parse_args()

    root = datasets_root()
    with contextlib.redirect_stdout(sys.stderr):  # it is no part of the table
        build_mini_lvis(os.path.join(root, "mini_lvis"), Settings())
    folder = (ROOT / args.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    budget = common(args.iterations, args.seed)
    start = make_start(folder, args.start_iterations, args.seed)
    table = rows()
    done: Dict[Row, Dict[str, Any]] = {}
    # Rows that use another row's weights come after it.
    for own_start in (True, False):
        part = [row for row in table if (row.checkpoint == "start") == own_start]
        with ThreadPoolExecutor(args.jobs) as pool:
            metrics = pool.map(lambda row: evaluate(row, folder, start, budget), part)
            for row, values in zip(part, metrics):
                done[row] = values
                print(f"{row.group}: {row.title}: {values['bbox']['AP']:.2f}", file=sys.stderr)

    print(
        f"{args.start_iterations} iterations for the common start, {args.iterations} for each row, "
        f"seed {args.seed}:\n\n"
        "| | | box AP | AP_r | AP_c | AP_f | mask AP | AP_r | s/iter, relative |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for row in table:
        trains = row.checkpoint == "start" or row.group == "decoupled"
        time = f"{relative_time(row, start, budget, folder, args.repeats):.2f}" if trains else "—"
        box, mask = done[row]["bbox"], done[row]["segm"]
        shown = [box[k] for k in ("AP", "APr", "APc", "APf")] + [mask["AP"], mask["APr"]]
        cells = " | ".join(f"{value:.2f}" for value in shown)
        print(f"| {row.group} | {row.title} | {cells} | {time} |", flush=True)


if __name__ == "__main__":
    main()
