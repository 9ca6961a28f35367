#!/usr/bin/env python
"""From nothing to a trained long-tailed detector: build mini_lvis, train, evaluate, draw."""

import os

from detectron2.engine import default_argument_parser

from tde_det import CausalNormClassifier
from tde_det.data.custom_sets import datasets_root
from tde_det.data.lvis_json import read_json
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, exit_on_input_error, setup
from tde_det.evaluation import format_table
from tde_det.visualization import draw_results

CONFIG = os.path.join(os.path.dirname(__file__), "../configs/mini_lvis_cascade_tde.yaml")
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")


def evaluate(cfg, model, folder, alpha, background_exempt=True):
    """Metrics of the same weights at another inference setting, as ``metrics.json`` has them."""
    for module in model.modules():
        if isinstance(module, CausalNormClassifier):
            module.alpha, module.background_exempt = alpha, background_exempt
    (name,) = cfg.DATASETS.TEST
    Trainer.test(cfg, model, Trainer.build_evaluator(cfg, name, folder))
    return read_json(os.path.join(folder, "metrics.json"))


@exit_on_input_error
def main():
    parser = default_argument_parser()
    parser.set_defaults(config_file=CONFIG, resume=True)
    args = parser.parse_args()
    args.opts = ["OUTPUT_DIR", "output/mini_lvis_cascade_tde", *args.opts]
    build_mini_lvis(os.path.join(datasets_root(), "mini_lvis"), Settings())
    cfg = setup(args)
    out = cfg.OUTPUT_DIR

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if trainer.start_iter:
        print(f"Continuing from iteration {trainer.start_iter}; delete {out} to start over")
    trainer.train()  # ends with an evaluation as the config says
    alpha, inference = cfg.MODEL.TDE.ALPHA, os.path.join(out, "inference")
    results = {
        "de-confounded (α=0)": evaluate(cfg, trainer.model, inference + "_factual", 0.0),
        f"with TDE (α={alpha})": read_json(os.path.join(inference, "metrics.json")),
        "TDE, background not exempt": evaluate(
            cfg, trainer.model, inference + "_not_exempt", alpha, background_exempt=False
        ),
    }
    table = "\n\n".join(
        f"{title}:\n\n" + format_table({k: v[task] for k, v in results.items()}, METRICS)
        for task, title in (("bbox", "Boxes"), ("segm", "Masks"))
    )
    with open(os.path.join(out, "table.md"), "w") as f:
        f.write(table + "\n")
    file = os.path.join(inference, "lvis_instances_results.json")
    pictures = os.path.join(out, "pictures")
    draw_results(cfg.DATASETS.TEST[0], file, pictures, limit=24, score_threshold=0.2)

    print(f"\n{table}\n")
    for what, path in (
        ("this table", "table.md"),
        ("all metrics", "inference/metrics.json"),
        ("AP of every class", "inference/per_category_ap.csv"),
        ("all detections", "inference/lvis_instances_results.json"),
        ("pictures", "pictures/"),
        ("the model", "model_final.pth"),
    ):
        print(f"{what:>18}: {os.path.join(out, path)}")


if __name__ == "__main__":
    main()
