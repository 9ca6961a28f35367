"""The live page: detections of one look at an image, and the page in a real browser."""

import json
import shutil
import socket
import time

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from PIL import Image

from tde_det.engine import Predictor
from tde_det.errors import InputError
from tde_det.live.image import LiveImage
from tde_det.live.page import Live, serve
from tde_det.modeling import box_predictors, build_detector

SMALL = ("MODEL.RPN.POST_NMS_TOPK_TEST", 30)


@pytest.fixture
def cfg(load_config, tmp_path, monkeypatch):
    """Config of a model with random weights, a mean direction, and a training set of counts."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "mini_lvis"
    folder.mkdir()
    images = [{"id": i, "file_name": "a.png", "height": 9, "width": 9} for i in (1, 2, 3)]
    categories = [{"id": i, "name": f"c{i}", "frequency": "rcf"[i % 3]} for i in range(60)]
    outline = {"bbox": [0, 0, 5, 5], "area": 25, "segmentation": [[0, 0, 5, 0, 5, 5, 0, 5]]}
    pairs = [(1 + n // 60, n % 60) for n in range(180) if n < 60 or n % 2]  # odd classes are in all
    objects = [
        {"id": n, "image_id": image_id, "category_id": category_id, **outline}
        for n, (image_id, category_id) in enumerate(pairs, 1)
    ]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "a.png")
    content = {"images": images, "annotations": objects, "categories": categories}
    for part in ("train", "val"):
        (folder / f"mini_lvis_{part}.json").write_text(json.dumps(content))
    cfg = load_config("mini_lvis_cascade_tde.yaml", *SMALL)
    torch.manual_seed(0)
    model = build_detector(cfg)
    for predictor in box_predictors(model):
        predictor.adjustments["tde"].feature_mean.uniform_(0, 1)
        predictor.cls_score.weight.data.mul_(100)  # scores that differ
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    from tde_det.engine import setup_tool

    return setup_tool(
        "configs/mini_lvis_cascade_tde.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(tmp_path / "model.pth"), *SMALL],
    )


def photograph():
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)


def test_detections_are_the_predictors(cfg, monkeypatch):
    predictor = Predictor(cfg)
    expected = predictor(photograph()[..., ::-1])["instances"]
    live = LiveImage(predictor, photograph())
    monkeypatch.setattr(predictor.model.backbone, "forward", None)  # it must not run again
    chain = [p.adjustments for p in box_predictors(predictor.model)]
    for _ in range(2):  # the second time, with the masks of the first
        found = live.detections(chain, 0.0)
        assert len(found) == len(expected) > 20
        boxes = torch.tensor([d["bbox"] for d in found])
        boxes[:, 2:] += boxes[:, :2]
        assert torch.allclose(boxes, expected.pred_boxes.tensor, atol=1e-4)
        assert torch.allclose(torch.tensor([d["score"] for d in found]), expected.scores)
        assert [d["category_id"] for d in found] == expected.pred_classes.tolist()
        assert {tuple(d["segmentation"]["size"]) for d in found} == {(90, 120)}
    best = expected.scores.max().item()
    assert live.detections(chain, best + 1e-6) == []


def test_sliders_change_what_is_drawn(cfg):
    live = Live(cfg)
    assert live.has_tde and not live.norcal_hint
    assert live.draw(None, 1, 0, 0.3) is None and live.look(None) is None
    image = live.look(photograph())
    plain = live.draw(image, 0, 0, 0)
    assert np.array_equal(plain, live.draw(image, 0, 0, 0))
    assert not np.array_equal(plain, live.draw(image, 4, 0, 0))
    assert not np.array_equal(plain, live.draw(image, 0, 2, 0))
    assert not np.array_equal(plain, live.draw(image, 0, 0, 1))


def test_without_a_training_set_there_is_no_norcal(cfg):
    cfg.DATASETS.TRAIN = ("nowhere",)
    live = Live(cfg)
    assert "NorCal needs class counts" in live.norcal_hint
    assert live.draw(live.look(photograph()), 1.5, 0, 0.01) is not None


def browser(tmp_path):
    options = pytest.importorskip("selenium.webdriver").ChromeOptions()
    from selenium import webdriver

    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("there is no Chromium with its driver")
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path}/browser")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def wait(condition, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise TimeoutError("the page does not change")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_page(cfg, tmp_path):
    pytest.importorskip("gradio")
    driver = browser(tmp_path)
    page = serve(Live(cfg), 1.5, "127.0.0.1", free_port(), block=False)
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    try:
        driver.get(page.local_url)
        upload = wait(lambda: driver.find_elements("css selector", "input[type=file]"))[0]
        upload.send_keys(str(tmp_path / "a.png"))

        def source():
            shown = driver.find_elements("css selector", "img")
            return shown[-1].get_attribute("src") if len(shown) > 1 else None

        first = wait(source)
        score = driver.find_elements("css selector", "input[type=number]")[-1]
        score.clear()
        score.send_keys("0.01\n")
        wait(lambda: source() not in (None, first))
        errors = [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
        assert not [e for e in errors if "favicon" not in e["message"]], errors
        # Nothing is asked of other machines.
        hosts = driver.execute_script(
            "return performance.getEntriesByType('resource').map(e => new URL(e.name).hostname)"
        )
        assert set(hosts) == {"127.0.0.1"}
    finally:
        page.close()
        driver.quit()


def test_a_taken_port_is_named(cfg):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=str(port)):
            serve(Live(cfg), 1.5, "127.0.0.1", port, block=False)
