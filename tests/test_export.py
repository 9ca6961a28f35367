"""Exported detectors detect what the model detects, at other sizes than the one traced."""

import builtins
import math
import os
import pathlib
import re
import warnings

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from PIL import Image
from test_box_predictor import TINY

from tde_det.adjustments import NorCal, Prototypes
from tde_det.engine import Predictor, export, load_model
from tde_det.engine.sample_image import drawn_image, resized
from tde_det.errors import InputError
from tde_det.inference.box_inference import top_detections
from tde_det.modeling import box_predictors

SIZES = ((64, 96), (96, 64), (75, 113))
FORMATS = pytest.mark.parametrize("kind", export.FORMATS)
ROOT = os.environ.get("REAL_DATA", "")
NEEDS_DATA = pytest.mark.skipif(not os.path.isdir(ROOT), reason="REAL_DATA names no folder")


def need(kind):
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")


@pytest.fixture
def model_of(load_config, tmp_path):
    """The config and the model of a checkpoint with a feature mean and a calibrated adjustment."""

    def make(name, *opts):
        small = ("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160)
        # So that images have different numbers of proposals.
        small += ("MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 1000)
        small += ("TEST.DETECTIONS_PER_IMAGE", 100)
        cfg = load_config(name, *TINY, "MODEL.RESNETS.NORM", "BN", *small, *opts)
        torch.manual_seed(0)
        model = build_model(cfg)
        with torch.no_grad():
            for _ in range(3):  # statistics of batch norm, without which features overflow
                model.backbone(
                    model.preprocess_image([{"image": resized(cfg, drawn_image())}]).tensor
                )
            for predictor in box_predictors(model):
                predictor.cls_score.weight.normal_(std=1 if predictor.is_normalized else 0.05)
                means = torch.randn(5, predictor.cls_score.weight.shape[1])
                means[3] = math.nan  # a class never seen
                counts, center = torch.arange(5), torch.rand_like(means[0])
                predictor.adjustments["prototypes"] = Prototypes(center, means, counts)
                predictor.adjustments["norcal"] = NorCal(counts, counts, gamma=0.4)
                if "tde" in predictor.adjustments:
                    predictor.adjustments["tde"].feature_mean.uniform_(0, 1)
        cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
        torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
        return cfg, load_model(cfg)

    return make


def images_of(cfg):
    return [resized(cfg, drawn_image(*size), 0.7 + 0.2 * k) for k, size in enumerate(SIZES)]


@FORMATS
@pytest.mark.parametrize(
    "name, opts",
    [
        ("lvis_cascade_tde.yaml", ()),
        ("lvis_cascade_tde.yaml", ("MODEL.MASK_ON", False)),
        ("lvis_mask_rcnn_tde.yaml", ()),
        ("lvis_mask_rcnn_tde.yaml", ("MODEL.MASK_ON", False, "MODEL.TDE.CLASSIFIER", "linear")),
    ],
)
def test_equal_to_the_model(model_of, tmp_path, kind, name, opts):
    need(kind)
    cfg, model = model_of(name, *opts)
    path = str(tmp_path / f"model.{kind}")
    images = images_of(cfg)
    assert len({image.shape for image in images}) == 3
    with torch.no_grad():
        batches = [model.preprocess_image([{"image": image}]) for image in images]
        proposed = [model.proposal_generator(b, model.backbone(b.tensor))[0][0] for b in batches]
    assert len({len(proposals) for proposals in proposed}) == 3
    line = export.export_verified(model, resized(cfg, drawn_image()), images[:1], kind, path)
    assert "tolerance 1e-04" in line and os.listdir(tmp_path) == ["model.pth", f"model.{kind}"]
    names = ["pred_boxes", "pred_classes", *(["pred_masks"] if cfg.MODEL.MASK_ON else []), "scores"]
    run = export.load_exported(kind, path, names)
    for image in images:
        with torch.no_grad():
            (expected,) = model.inference([{"image": image}], do_postprocess=False)
        found = run(image)
        expected = {**expected.get_fields(), "pred_boxes": expected.pred_boxes.tensor}
        assert expected.keys() == found.keys() and len(expected["scores"]) > 20
        assert export.largest_difference(expected, found, max(image.shape)) < 1e-4
    # The adjustments are in the file: without them the model finds other scores.
    for predictor in box_predictors(model):
        predictor.adjustments.clear()
    with torch.no_grad():
        (other,) = model.inference([{"image": image}], do_postprocess=False)
    assert len(other) != len(found["scores"]) or (other.scores - found["scores"]).abs().max() > 1e-3


@FORMATS
def test_number_of_detections_may_change(model_of, tmp_path, kind):
    """From the traced image's to none, and to more than NMS starts with."""
    need(kind)
    cfg, model = model_of("lvis_cascade_tde.yaml", "TEST.DETECTIONS_PER_IMAGE", 40)
    adapter = export.make_traceable(model, images_of(cfg)[0])
    export.export(adapter, kind, str(tmp_path / "model"))
    run = export.load_exported(kind, str(tmp_path / "model"), export.output_names(adapter))
    counts = set()
    for value in (0.0, 127.0, 255.0):
        image = torch.full((3, 70, 50), value)
        counts.add(len(run(image)["scores"]))
        assert export.compare(adapter, run, [image]) < 1e-4
    assert counts


@FORMATS
def test_the_choice_of_detections(tmp_path, kind):
    """With fewer pairs than NMS starts with, with more, and with so many that it starts again."""
    need(kind)

    class Choice(torch.nn.Module):
        def forward(self, boxes, scores, size):
            return top_detections(boxes, scores, (size[0], size[1]), 1e-4, 0.3, 300)

    def case(count, spread, size):
        generator = torch.Generator().manual_seed(count)
        corner = torch.rand(count, 2, generator=generator) * spread
        scores = (torch.randn(count, 41, generator=generator) * 2).softmax(1)
        return torch.cat([corner, corner + 50], dim=1), scores, torch.tensor(size)

    first, *others = (
        case(30, 200, [220, 230]), case(1, 10, [99, 98]), case(0, 1, [9, 9]),
        case(400, 500, [300, 520]), case(300, 20, [60, 70]),
    )  # fmt: skip
    path, names = str(tmp_path / "model"), ["boxes", "scores", "size"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if kind == "torchscript":
            run = torch.jit.trace(Choice(), first)
        else:
            axes = {"boxes": {0: "n"}, "scores": {0: "n"}}
            torch.onnx.export(
                Choice(), first, path, dynamo=False, opset_version=export.OPSET,
                input_names=names, dynamic_axes=axes,
            )  # fmt: skip
            session = pytest.importorskip("onnxruntime").InferenceSession(path)

            def run(*values):
                inputs = {name: value.numpy() for name, value in zip(names, values)}
                return [torch.from_numpy(value) for value in session.run(None, inputs)]

    lengths = set()
    for values in (first, *others):
        expected = Choice()(*values)
        lengths.add(len(expected[0]))
        for one, other in zip(run(*values), expected):
            assert one.dtype == other.dtype and torch.equal(one, other)
    assert {0, 300} < lengths


def test_what_differs_is_not_written(model_of, tmp_path, monkeypatch):
    cfg, model = model_of("lvis_mask_rcnn_tde.yaml")
    sample, *others = images_of(cfg)
    path = tmp_path / "model.ts"
    monkeypatch.setattr(export, "largest_difference", lambda *_: 2e-4)
    with pytest.raises(InputError, match=r"model.ts is not written: its outputs differ .* 2.0e-04"):
        export.export_verified(model, sample, others, "torchscript", str(path))
    assert os.listdir(tmp_path) == ["model.pth"]


def test_largest_difference():
    def detections(scores, classes, boxes):
        boxes = torch.tensor([[0.0, 0, 10, box] for box in boxes])
        return dict(
            scores=torch.tensor(scores), pred_classes=torch.tensor(classes), pred_boxes=boxes
        )

    one = detections([0.9, 0.5], [1, 2], [20, 30])
    swapped = detections([0.5, 0.9], [2, 1], [30, 20])
    assert export.largest_difference(one, swapped, 100) == 0
    for other, expected in (
        (detections([0.9, 0.4], [1, 2], [20, 30]), 0.1),
        (detections([0.9, 0.5], [1, 2], [20, 80]), 0.5),
        (detections([0.9, 0.5], [1, 3], [20, 30]), np.inf),
        (detections([0.9], [1], [20]), np.inf),
    ):
        assert export.largest_difference(one, other, 100) == pytest.approx(expected)
    masks = [{**one, "pred_masks": torch.full((2, 1, 2, 2), value)} for value in (0.25, 0.5)]
    assert export.largest_difference(*masks, 100) == 0.25


def test_errors(model_of, monkeypatch):
    cfg, model = model_of("lvis_mask_rcnn_tde.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0)
    with pytest.raises(InputError, match="nothing is detected .* another --sample-image"):
        export.make_traceable(model, resized(cfg, drawn_image()))
    with pytest.raises(InputError, match="only a GeneralizedRCNN"):
        export.make_traceable(torch.nn.Linear(2, 2), torch.zeros(3, 8, 8))
    real = builtins.__import__
    missing = ImportError("No module named 'onnxruntime'")

    def without(name, *args):
        if name == "onnxruntime":
            raise missing
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="onnx.*; pip install -e '.\\[export\\]'"):
        export.check_format("onnx")
    export.check_format("torchscript")


@FORMATS
def test_the_example_of_the_docs(model_of, tmp_path, monkeypatch, kind):
    """Its detections are those of the predictor, in pixels of the original image."""
    need(kind)
    cfg, model = model_of("lvis_cascade_tde.yaml")
    path = tmp_path / ("model.onnx" if kind == "onnx" else "model.ts")
    export.export(export.make_traceable(model, images_of(cfg)[0]), kind, str(path))
    Image.fromarray(drawn_image(90, 150)[:, :, ::-1]).save(tmp_path / "street.png")
    text = pathlib.Path(REPOSITORY, "docs/export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace("model.onnx", path.name).replace("street.jpg", "street.png")
    code = code.replace("short=800, long=1333", "short=96, long=160")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    expected = Predictor(cfg)(read_image("street.png", "BGR"))["instances"]
    assert len(found["boxes"]) == len(expected) > 20
    np.testing.assert_allclose(found["boxes"], expected.pred_boxes.tensor, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)
    np.testing.assert_array_equal(found["classes"], expected.pred_classes)
    differs = found["masks"] != expected.pred_masks.numpy()
    assert differs.mean() < 1e-3 and expected.pred_masks.float().mean() > 0.01


@NEEDS_DATA
@FORMATS
@pytest.mark.parametrize("name", ["lvis_cascade_tde.yaml", "lvis_mask_rcnn_tde.yaml"])
def test_photographs(model_of, tmp_path, kind, name):
    need(kind)
    cfg, model = model_of(name, "INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 320)
    photographs = {}
    for path in sorted(pathlib.Path(ROOT, "coco").rglob("*.jpg")):
        photograph = read_image(str(path), "BGR")
        photographs.setdefault(photograph.shape, photograph)
        if len(photographs) == 5:
            break
    sample, *others = [resized(cfg, photograph) for photograph in photographs.values()]
    assert len(others) == 4
    path = str(tmp_path / "model")
    export.export_verified(model, sample, [sample, *others], kind, path)
