#!/usr/bin/env python
"""From nothing to a trained long-tailed detector: build mini_lvis, train, evaluate, draw.

Run again, it continues where it stopped.
"""

import os

from tde_det import cli
from tde_det.errors import InputError

CONFIG = os.path.join(os.path.dirname(__file__), "../configs/mini_lvis_cascade_tde.yaml")
EXAMPLE = "quickstart.py OUTPUT_DIR output/mini_lvis_cascade_tde"
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")


def parse_args():
    args = cli.parse_args(cli.make_parser(__doc__, EXAMPLE, CONFIG))
    args.opts = ["OUTPUT_DIR", "output/mini_lvis_cascade_tde", *args.opts]
    args.eval_only, args.resume = False, True
    return args


@cli.exit_on_input_error
def main():
    args = parse_args()
    from tde_det.adjustments import parse_chains
    from tde_det.data.custom_sets import datasets_root
    from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
    from tde_det.engine import Trainer, setup
    from tde_det.evaluation import format_table
    from tde_det.evaluation.sweep import sweep
    from tde_det.visualization import draw_results

    build_mini_lvis(os.path.join(datasets_root(), "mini_lvis"), Settings())
    cfg = setup(args)
    out, (val,), alpha = cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.MODEL.TDE.ALPHA
    if cfg.MODEL.TDE.CLASSIFIER == "linear" or alpha == 0:
        raise InputError("there is no TDE to compare with and without: use tools/train_net.py")

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    if trainer.start_iter:
        print(f"Continuing from iteration {trainer.start_iter}; delete {out} to start over")
    trainer.train()  # ends with an evaluation as the config says
    rows = {
        "de-confounded (α=0)": "tde alpha=0",
        f"with TDE (α={alpha:g})": f"tde alpha={alpha}",
        "TDE, background not exempt": f"tde alpha={alpha} exempt=false",
    }
    chains = [chain for text in rows.values() for chain in parse_chains(text)]
    loader = Trainer.build_test_loader(cfg, val)
    results = list(sweep(cfg, trainer.model, loader, val, chains, out).values())
    table = "\n\n".join(
        f"{title}:\n\n" + format_table({k: v[task] for k, v in zip(rows, results)}, METRICS)
        for task, title in (("bbox", "Boxes"), ("segm", "Masks"))
    )
    with open(os.path.join(out, "table.md"), "w") as f:
        f.write(table + "\n")
    file = os.path.join(out, "inference/lvis_instances_results.json")
    draw_results(
        val, {"predictions": file}, os.path.join(out, "pictures"), limit=24, score_threshold=0.2
    )

    print(f"\n{table}\n")
    for what, path in (
        ("this table", "table.md"),
        ("the same as csv, plot", "sweep.csv, sweep.png"),
        ("all metrics", "inference/metrics.json"),
        ("AP of every class", "inference/per_category_ap.csv"),
        ("all detections", "inference/lvis_instances_results.json"),
        ("pictures", "pictures/"),
        ("the model", "model_final.pth"),
    ):
        print(f"{what:>21}: {os.path.join(out, path)}")


if __name__ == "__main__":
    main()
