"""What a model's parts cost, against counts by hand."""

import pytest
import torch
from detectron2.modeling import build_model
from test_box_predictor import CLASSES, TINY

from tde_det.engine.analysis import analyze, spread_boxes
from tde_det.errors import InputError

IMAGE = [{"image": torch.zeros(3, 64, 96)}]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("name", ["lvis_cascade_tde.yaml", "lvis_mask_rcnn_tde.yaml"])
def test_counts(load_config, name, masks, capfd):
    detections = ("TEST.DETECTIONS_PER_IMAGE", 7, "MODEL.MASK_ON", masks)
    model = build_model(load_config(name, *TINY, *detections))
    analysis = analyze(model, IMAGE, iterations=1)
    assert model.training
    parts = {part.name.removeprefix("roi_heads."): part for part in analysis.parts}
    assert sum(p.parameters for p in parts.values()) == sum(p.numel() for p in model.parameters())
    stages = [".0", ".1", ".2"] if "cascade" in name else [""]
    others = {"backbone", "proposal_generator", "box_pooler", "the rest"}
    others |= {"mask_pooler", "mask_head"} if masks else set()
    per_stage = {f"{n}{stage}" for n in ("box_head", "box_predictor") for stage in stages}
    assert parts.keys() == others | per_stage
    for stage in stages:  # 20 proposals, 16 channels of 7×7, layers of 32, class and box outputs
        head, predictor = parts[f"box_head{stage}"], parts[f"box_predictor{stage}"]
        assert head.flops == 20 * (16 * 49 * 32 + 32 * 32) and head.activations == 20 * 2 * 32
        outputs = predictor.parameters // 32 if "cascade" not in name else CLASSES + 1 + 4
        assert predictor.activations == 20 * outputs == predictor.flops / 32
    if masks:  # 4 convolutions of 16 channels, one that doubles the sides, one to the classes
        plain, double = 14 * 14, 28 * 28
        channels = parts["mask_head"].activations / 7 - 4 * 16 * plain - 16 * double
        outputs = channels / double
        assert outputs in (1, CLASSES)
        flops = 4 * plain * 16 * 16 * 9 + plain * 4 * 16 * 16 + double * 16 * outputs
        assert parts["mask_head"].flops == 7 * flops
    assert all(part.seconds > 0 for part in parts.values())
    assert "64×96, 20 proposals, 7 detections" in analysis.setting
    table = analysis.table().splitlines()
    assert len({len(line) for line in table[:-2]}) == 1 and table[-3].startswith("| total ")
    assert not capfd.readouterr().err


def test_boxes_are_spread():
    boxes = spread_boxes(300, 200, 100, torch.device("cpu"))
    assert boxes.shape == (300, 4) and (boxes >= 0).all()
    assert (boxes <= torch.tensor([100, 200, 100, 200]) + 1e-3).all()
    sides = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([100, 200])
    assert sides.min() == pytest.approx(1 / 16) and sides.max() == pytest.approx(1 / 2)
    assert spread_boxes(1, 8, 8, torch.device("cpu")).shape == (1, 4)


def test_other_models():
    with pytest.raises(InputError, match="standard or cascade ROI heads"):
        analyze(torch.nn.Linear(2, 2), IMAGE)
