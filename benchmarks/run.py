#!/usr/bin/env python
"""Run benchmarks and write their tables into the pages of docs/."""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
# In its page, each table stands between the lines <!-- name --> and <!-- /name -->.
BENCHMARKS = {
    "detections": ["detections.py"],
    "masks": ["masks.py"],
    "head": ["head.py"],
    "classifier": ["classifier.py"],
    "end_to_end": ["end_to_end.py"],
    "evaluation": ["evaluation.py"],
    "data_loading": ["data_loading.py", "--workers", "2", "--repeat", "5"],
    "backbones": ["backbones.py"],
    "classification": ["classification.py"],
    "dominant_class": ["dominant_class.py"],
    "dominant_class_photographs": [
        *("dominant_class.py", "--data", "photographs"),
        *("--plot", "docs/images/when_tde_hurts_photographs.png"),
    ],
}
PAGES = {
    "backbones": "backbones.md",
    "classification": "methods.md",
    "dominant_class": "when_tde_hurts.md",
    "dominant_class_photographs": "when_tde_hurts.md",
}  # others: performance.md
# These have a --device.
ON_DEVICE = ("detections", "masks", "head", "classifier", "end_to_end")


def machine(device: str) -> str:
    """The machine, the versions and the commit that figures belong to."""
    gpu = ""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: --device cuda: there is no CUDA here")
        gpu = f"{torch.cuda.get_device_name()}, "
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ("torch", "torchvision", "numpy", "hotcoco", "pycocotools", "lvis")
    return (
        f"{datetime.date.today()}, {gpu}{model[1] if model else platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}, commit {commit}"
    )


def page_of(name: str) -> Path:
    """The page that has the table of this name."""
    return HERE.parent / "docs" / PAGES.get(name, "performance.md")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help=f"of {', '.join(BENCHMARKS)} (default: all)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    known = BENCHMARKS if args.device == "cpu" else ON_DEVICE
    unknown = set(args.names) - set(known)
    if unknown:
        sys.exit(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(known)}")
    where = machine(args.device)  # before the page changes, which would make the commit dirty
    for name in args.names or known:
        page_file = page_of(name)
        print(f"\n{name}", flush=True)
        script, *options = BENCHMARKS[name]
        command = [sys.executable, "-W", "ignore", str(HERE / script), *options]
        if args.device == "cuda":  # a table of its own
            command += ["--device", "cuda"]
            name += "_cuda"
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        if process.returncode:
            sys.exit(f"{script} failed; what was measured before is in {page_file}")
        table = f"<!-- {name} -->\n{where}:\n\n{''.join(lines).strip()}\n<!-- /{name} -->"
        page = page_file.read_text()
        before, _, rest = page.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            sys.exit(f"{page_file} has no place marked <!-- {name} --> … <!-- /{name} -->")
        page_file.write_text(before + table + after)


if __name__ == "__main__":
    main()
