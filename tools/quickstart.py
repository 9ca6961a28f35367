#!/usr/bin/env python
"""From nothing to a comparison: build mini_lvis, train two detectors, evaluate three, make a page.

It runs the commands that it prints. The linear baseline and the de-confounded model are trained;
TDE is the second one's at inference. Run again, it continues where it stopped. KEY VALUE pairs
change all three configs.
"""

import json
import os
import shlex
import subprocess
import sys

from tde_det import cli

EXAMPLE = "quickstart.py --output output/demo SOLVER.MAX_ITER 800"
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def parse_args():
    parser = cli.make_plain_parser(__doc__, EXAMPLE)
    parser.add_argument(
        "--output", default="output/demo", help="folder of all results (default: output/demo)"
    )
    return cli.parse_args(parser)


def run(tool, *words):
    """Run a tool, and pass stop signals on to it; end if it fails."""
    from tde_det.stop_signals import on_stop_signals

    command = [sys.executable, os.path.join(REPOSITORY, "tools", tool), *words]
    print("\n$", shlex.join(command), flush=True)
    process = subprocess.Popen(command)
    with on_stop_signals(process.send_signal):
        status = process.wait()
    if status:
        sys.exit(status)


@cli.exit_on_input_error
def main():
    args = parse_args()
    from tde_det.data.custom_sets import datasets_root
    from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
    from tde_det.evaluation import format_table

    def folder(name):
        return os.path.join(args.output, name)

    def train_net(name, kind, *words):
        config = os.path.join(REPOSITORY, "configs", f"mini_lvis_cascade_{kind}.yaml")
        run("train_net.py", "--config-file", config, *words, *args.opts, "OUTPUT_DIR", folder(name))

    build_mini_lvis(os.path.join(datasets_root(), "mini_lvis"), Settings())
    train_net("linear", "baseline", "--resume")
    train_net("de-confounded", "deconfound", "--resume")
    weights = os.path.join(folder("de-confounded"), "model_final.pth")
    train_net("TDE", "tde", "--eval-only", "MODEL.WEIGHTS", weights)
    names = ("linear", "de-confounded", "TDE")
    run("report.py", *map(folder, names), "--output", folder("report"))

    results = {}
    for name in names:
        with open(os.path.join(folder(name), "inference/metrics.json")) as f:
            results[name] = json.load(f)
    for title, task in (("Boxes", "bbox"), ("Masks", "segm")):
        metrics = {name: result[task] for name, result in results.items()}
        print(f"\n{title}:\n\n{format_table(metrics, METRICS)}")
    print(f"\nOpen {folder('report')}/index.html in a browser.")


if __name__ == "__main__":
    main()
