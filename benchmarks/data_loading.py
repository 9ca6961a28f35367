#!/usr/bin/env python
"""Time and memory from an LVIS json to the first training batch: Detectron2's way and ours.

Every measurement is a process of its own that starts counting after its imports. The mapper passes
the dicts on, so that no images are needed. "cold" makes the cache, "warm" finds it.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import msgspec
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets.lvis import register_lvis_instances
from generate_lvis_json import generate
from tabulate import tabulate
from timing import spread

from tde_det.cli import exit_on_input_error
from tde_det.data import build_train_loader
from tde_det.data.seeded_dataset import Draw, SeededDataset
from tde_det.errors import InputError

NAME = "lvis_v1_benchmark"
BATCH = 16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="default: one is generated, and deleted")
    parser.add_argument("--images", type=int, default=100_170, help="of the generated json")
    parser.add_argument("--annotations", type=int, default=1_270_141, help="of the generated json")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--repeat", type=int, default=1, help="runs, of which the median counts")
    parser.add_argument("--measure", choices=("stock", "ours"), help=argparse.SUPPRESS)
    return parser.parse_args()


def memory(pid: int) -> Dict[str, float]:
    """``Rss`` and ``Pss`` of a process in GB; Pss divides shared pages among those sharing them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {line.split(":")[0]: line.split()[1] for line in lines}
    return {key: int(fields[key]) * 1024 / 1e9 for key in ("Rss", "Pss")}


def peak() -> float:
    """The highest Rss that this process has had, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def children(pid: int) -> List[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pass_on(record: Dict[str, Any]) -> Dict[str, Any]:
    return record


def measure(how: str, json_file: Path, workers: int) -> Dict[str, Any]:
    """Build the loader, take a batch, and say what that took."""
    register_lvis_instances(NAME, {}, str(json_file), "coco/")
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.SOLVER.IMS_PER_BATCH = BATCH
    imports = memory(os.getpid())["Rss"]
    start, cpu_start = time.perf_counter(), time.process_time()
    if how == "stock":
        loader = build_detection_train_loader(cfg, mapper=pass_on)
    else:
        loader = build_train_loader(cfg, pass_on)
    batches = iter(loader)
    next(batches)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    in_main = memory(os.getpid())
    in_workers = [memory(pid) for pid in children(os.getpid())][:workers]
    result = {
        "seconds to the first batch": seconds,
        "seconds of it on the CPU, main process": cpu_seconds,
        "main process, peak RSS": peak(),
        "main process, peak RSS above imports": peak() - imports,
        "main process, RSS at the first batch": in_main["Rss"],
    }
    if in_workers:
        result["worker, RSS"] = max(m["Rss"] for m in in_workers)
        result["worker, PSS"] = max(m["Pss"] for m in in_workers)
        result["all processes, PSS"] = in_main["Pss"] + sum(m["Pss"] for m in in_workers)
    dicts: Any = loader
    while hasattr(dicts, "dataset"):  # the loaders' wrappers
        dicts = dicts.dataset
    digest = hashlib.sha256()
    for i in range(len(dicts)):
        record = dicts[Draw(i, seed=0) if isinstance(dicts, SeededDataset) else i]
        digest.update(msgspec.msgpack.encode(record, order="sorted"))
    return {**result, "digest": digest.hexdigest()}


def run(how: str, args: argparse.Namespace, workers: int, cache: str) -> Dict[str, Any]:
    command = [sys.executable, __file__, "--measure", how, "--json", str(args.json)]
    done = subprocess.run(
        [*command, "--workers", str(workers)],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> str:
    """A markdown table of all measurements.

    Raises:
        InputError: the dicts differ, so that there is nothing to compare.
    """
    rows = []
    for workers in args.workers:
        runs: Dict[str, List[Dict[str, Any]]] = {"stock": [], "cold": [], "warm": []}
        for _ in range(args.repeat):
            with tempfile.TemporaryDirectory() as cache:
                runs["stock"].append(run("stock", args, workers, cache))
                runs["cold"].append(run("ours", args, workers, cache))
                runs["warm"].append(run("ours", args, workers, cache))
        if len({one.pop("digest") for several in runs.values() for one in several}) > 1:
            raise InputError("the dicts of the two loaders differ")
        for item in runs["stock"][0]:
            stock, cold, warm = (
                statistics.median(one[item] for one in several) for several in runs.values()
            )
            ratios = spread(*([one[item] for one in runs[how]] for how in ("stock", "cold")))
            unit = "" if item.startswith("seconds") else ", GB"
            times = [f"{stock / max(value, 1e-3):.1f}" for value in (cold, warm)]
            label = f"{item}{unit} ({workers} workers)"
            rows.append([label, *(f"{value:.2f}" for value in (stock, cold, warm)), *times, ratios])
    headers = [
        "item",
        "stock",
        "ours, cold",
        "ours, warm",
        "stock / cold",
        "stock / warm",
        "cold, spread",
    ]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


@exit_on_input_error
def main() -> None:
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.json, args.workers[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.json is None:
            args.json = Path(folder) / "generated.json"
            generate(args.json, args.images, args.annotations)
        elif not args.json.is_file():
            raise InputError(f"--json {args.json} does not exist")
        table = compare(args)
        print(f"{args.json.stat().st_size / 1e9:.2f} GB of json, identical dicts\n\n{table}")


if __name__ == "__main__":
    main()
