"""Grad-CAM over boxes, factual and adjusted."""

import json
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from PIL import Image

from tde_det.modeling import box_predictors, build_detector
from tde_det.visualization.activation import Example, draw_sheet, evidence, grad_cam

SMALL = ("MODEL.RPN.POST_NMS_TOPK_TEST", 8)


def test_grad_cam_is_the_formula():
    torch.manual_seed(0)
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    def score(row):  # not linear: the gradient depends on the place
        return (features[row] ** 2 * torch.arange(-30, 30).reshape(3, 4, 5)).sum()

    maps = grad_cam(features, torch.stack([score(0), score(1)]))
    step = 1e-6
    for row in range(2):
        weights = np.zeros(3)
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    before = score(row).item()
                    with torch.no_grad():
                        features[row, c, y, x] += step
                    weights[c] += (score(row).item() - before) / step / 20
                    with torch.no_grad():
                        features[row, c, y, x] -= step
        for y in range(4):
            for x in range(5):
                total = sum(weights[c] * features[row, c, y, x].item() for c in range(3))
                assert maps[row, y, x].item() == pytest.approx(max(0, total), rel=1e-3, abs=1e-3)
    assert maps.max() > 0


@pytest.fixture
def model(load_config):
    torch.manual_seed(0)
    model = build_detector(load_config("mini_lvis_cascade_tde.yaml")).eval()
    for predictor in box_predictors(model):
        predictor.adjustments["tde"].feature_mean.uniform_(0, 1)
    return model


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_evidence(model, alpha):
    for predictor in box_predictors(model):
        predictor.adjustments["tde"].alpha = alpha
    batch = [{"image": torch.rand(3, 96, 128) * 255}]
    boxes = torch.tensor([[4.0, 5, 60, 50], [30, 20, 90, 90]])
    classes = torch.tensor([3, 59])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = evidence(model, batch, boxes, classes)
    assert found.factual.shape == found.adjusted.shape == (2, 7, 7)
    assert found.probabilities.shape == (2, 2) and not found.probabilities.requires_grad
    same = alpha == 0
    assert torch.equal(found.factual, found.adjusted) == same
    assert torch.equal(found.probabilities[:, 0], found.probabilities[:, 1]) == same
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_sheet_has_one_scale_a_row():
    image = np.full((40, 60, 3), 100, np.uint8)
    weak, strong = np.zeros((7, 7), np.float32), np.zeros((7, 7), np.float32)
    weak[3, 3], strong[3, 3] = 0.1, 1
    example = Example(image, (-5, 10, 30, 80), 0, weak, strong, (0.2, 0.5))
    assert example.change() == pytest.approx(0.3)
    figure = draw_sheet([example], {0: {"name": "a_$x$", "frequency": "r"}}, "TDE")
    factual, adjusted = (axes.images[0].get_array() for axes in figure.axes[1:])
    differs = [np.abs(picture.astype(int) - 100).max() for picture in (factual, adjusted)]
    assert differs[0] < differs[1] / 2
    assert [axes.get_title() for axes in figure.axes] == ["a $x$ (r)", "factual: 20%", "TDE: 50%"]


def test_tool(model, tmp_path, monkeypatch):
    root = tmp_path / "mini_lvis"
    root.mkdir()
    categories = [{"id": i + 1, "name": f"c{i}", "frequency": "f"} for i in range(60)]
    image = {"id": 1, "file_name": "a.png", "height": 64, "width": 96}
    for part in ("train", "val"):
        content = {"images": [image], "annotations": [], "categories": categories}
        (root / f"mini_lvis_{part}.json").write_text(json.dumps(content))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(
        root / "a.png"
    )
    shutil.copy(root / "a.png", pictures / "a.png")
    (pictures / "b.jpg").write_text("no image")
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tool = f"{REPOSITORY}/tools/visualize_activation.py"

    def run(*words):
        config = ("--config-file", f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml")
        opts = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "model.pth", *SMALL)
        monkeypatch.setattr(sys, "argv", [str(w) for w in (tool, *config, *words, *opts)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(tool, run_name="__main__")
        return str(exit_.value.code)

    words = ("--input", pictures, "--score-threshold", 0, "--best", 3, "--output", "sheet.png")
    said = run(*words)
    assert "1 of 2 files are skipped" in said and "b.jpg" in said
    assert Image.open("sheet.png").size == (900, 900)
    for wrong, message in (
        (("--input", pictures, "--output", "a.txt"), "neither a .png"),
        (("--input", pictures, "--output", "a.png", "--best", 0), "--best"),
        (("--input", pictures, "--output", "a.png", "--score-threshold", 1), "no detection"),
    ):
        assert message in run(*wrong)
