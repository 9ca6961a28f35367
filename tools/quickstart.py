#!/usr/bin/env python
"""From nothing to a trained long-tailed detector: build mini_lvis, train, evaluate, draw."""

import os

from detectron2.engine import default_argument_parser

from tde_det import CausalNormClassifier
from tde_det.data.custom_sets import datasets_root
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, exit_on_input_error, setup
from tde_det.evaluation import format_table
from tde_det.visualization import draw_results

CONFIG = os.path.join(os.path.dirname(__file__), "../configs/mini_lvis_cascade_tde.yaml")
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")


def evaluate(cfg, model, folder, alpha, background_exempt=True):
    """Metrics of the same weights at another inference setting."""
    for module in model.modules():
        if isinstance(module, CausalNormClassifier):
            module.alpha, module.background_exempt = alpha, background_exempt
    (name,) = cfg.DATASETS.TEST
    return Trainer.test(cfg, model, Trainer.build_evaluator(cfg, name, folder))


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
    results = {f"TDE (α={cfg.MODEL.TDE.ALPHA})": trainer.train()}
    alpha = cfg.MODEL.TDE.ALPHA
    settings = {"de-confounded (α=0)": (0.0, True), "TDE, background not exempt": (alpha, False)}
    for number, (label, setting) in enumerate(settings.items()):
        folder = os.path.join(out, f"inference_{number}")
        results[label] = evaluate(cfg, trainer.model, folder, *setting)

    order = [1, 0, 2]  # from plain to TDE to what the exemption is for
    rows = [list(results.items())[i] for i in order]
    table = "\n\n".join(
        f"{title}\n" + format_table({label: result[task] for label, result in rows}, METRICS)
        for task, title in (("bbox", "Boxes"), ("segm", "Masks"))
    )
    with open(os.path.join(out, "table.md"), "w") as f:
        f.write(table + "\n")
    inference = os.path.join(out, "inference")
    file = os.path.join(inference, "lvis_instances_results.json")
    pictures = os.path.join(out, "pictures")
    draw_results(cfg.DATASETS.TEST[0], file, pictures, limit=24)

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
