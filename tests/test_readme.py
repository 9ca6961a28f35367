"""The README's Python snippets run as they stand."""

import os
import re

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image

from tde_det import TDEOutputLayers

SMALL = "configs/mini_lvis_cascade_tde.yaml"


def snippets():
    with open(os.path.join(REPOSITORY, "README.md"), encoding="utf-8") as f:
        return re.findall(r"```python\n(.*?)```", f.read(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, load_config):
    """A folder with a checkpoint and an image, in which the snippets find what they name."""
    (tmp_path / "output").mkdir()
    model = build_model(load_config("mini_lvis_cascade_tde.yaml"))
    DetectionCheckpointer(model, str(tmp_path / "output")).save("model_final")
    Image.fromarray(np.zeros((90, 120, 3), np.uint8)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_detect_in_one_image(folder):
    (folder / "configs").mkdir()
    (folder / "configs" / "lvis_cascade_tde.yaml").write_text(
        f"_BASE_: {os.path.join(REPOSITORY, SMALL)}\n"
        "DATASETS: {LVIS_CUSTOM: [], TRAIN: [coco_2017_val], TEST: [coco_2017_val]}\n"
    )
    names: dict = {}
    exec(snippets()[0], names)
    assert names["instances"].image_size == (90, 120)
    assert names["instances"].has("pred_masks")


def test_in_your_own_project(folder):
    base = os.path.join(REPOSITORY, "configs", "Base-RCNN-FPN.yaml")
    (folder / "your_config.yaml").write_text(f"_BASE_: {base}\nMODEL: {{DEVICE: cpu}}\n")
    names: dict = {}
    exec(snippets()[1], names)
    predictors = names["model"].roi_heads.box_predictor
    assert all(isinstance(predictor, TDEOutputLayers) for predictor in predictors)
    with torch.no_grad():
        (output,) = names["model"].eval()([{"image": torch.zeros(3, 64, 64)}])
    assert output["instances"].image_size == (64, 64)
