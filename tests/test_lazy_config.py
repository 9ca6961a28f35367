"""Detectron2's .py configs: read, built at full size, trained, evaluated, adjusted."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from tde_det import TDEOutputLayers
from tde_det.adjustments import parse_chains
from tde_det.cli import make_parser, parse_args
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, load_model, read_config, setup, setup_tool
from tde_det.engine.calibration import calibrate
from tde_det.errors import InputError
from tde_det.modeling import box_predictors, build_detector

SMALL = f"{REPOSITORY}/tests/lazy_small.py"
LAZY = f"{REPOSITORY}/configs/lazy"
PHOTOGRAPHS = os.environ.get("REAL_DATA", "")
SIZE = 128
# ViTDet in a size for two CPU cores; the rest is as in the config.
REDUCED = (
    *(
        "train.device=cpu",
        "train.init_checkpoint=",
        "train.max_iter=3",
        "dataloader.test.dataset.names=[]",
    ),
    *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"),
    *("model.backbone.net.depth=2", "model.backbone.net.embed_dim=96"),
    *("model.backbone.net.num_heads=4", "model.backbone.net.window_block_indexes=[0]"),
    *(f"model.backbone.net.img_size={SIZE}", f"model.backbone.square_pad={SIZE}"),
    *(f"dataloader.train.mapper.augmentations.1.target_height={SIZE}",),
    *(f"dataloader.train.mapper.augmentations.1.target_width={SIZE}",),
    *(f"dataloader.train.mapper.augmentations.2.crop_size=[{SIZE},{SIZE}]",),
    "model.proposal_generator.post_nms_topk=[50,10]",
)


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    settings = Settings(12, 96, train_images=8, val_images=2, seed=1)
    build_mini_lvis(str(root / "mini_lvis"), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


def trainer(config, *overrides, resume=False):
    args = default_argument_parser().parse_args([])
    args.config_file, args.opts, args.resume = config, list(overrides), resume
    made = Trainer(setup(args))
    made.resume_or_load(resume)
    return made


@pytest.mark.parametrize(
    "name, millions",
    [("vitdet_b_cascade_tde", 145), ("swin_b_cascade_tde", 143), ("R50_tde_100ep_LSJ", 52)],
)
def test_full_size(name, millions):
    cfg = read_config(f"{LAZY}/lvis_{name}.py", ["train.device=cpu"])
    model = build_detector(cfg)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    predictors = box_predictors(model)
    assert len(predictors) == (1 if "R50" in name else 3)
    for predictor in predictors:
        assert predictor.cls_score.weight.shape == (1204, 1024)
        assert predictor.adjustments.describe() == "tde alpha=1.5 exempt=True"
        assert predictor.test_score_thresh == 0.0001 and predictor.test_topk_per_image == 300
    assert cfg.DATASETS.TRAIN == ("lvis_v1_train",) and cfg.SOLVER.IMS_PER_BATCH == 64
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    assert (cfg.DATALOADER.REPEAT_THRESHOLD, cfg.INPUT.MIN_SIZE_TEST) == (0.001, 1024)


def test_large_scale_jitter():
    """Images of a training are crops of SIZE, whatever their size was."""
    lazy = LazyConfig.load(f"{LAZY}/lvis_vitdet_b_cascade_tde.py")
    flip, scale, crop = instantiate(lazy.dataloader.train.mapper.augmentations)
    assert (scale.min_scale, scale.max_scale, tuple(crop.crop_size)) == (0.1, 2.0, (1024, 1024))
    assert lazy.dataloader.train.mapper.recompute_boxes


class TestStockHeads:
    @pytest.fixture
    def models(self):
        """The config's own model, and the same with predictors that can be adjusted."""
        cfg = setup_tool(SMALL, [])
        torch.manual_seed(0)
        stock = instantiate(LazyConfig.load(SMALL).model)
        for predictor in stock.roi_heads.box_predictor:
            torch.nn.init.normal_(predictor.cls_score.weight)
            torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
        model = build_detector(cfg)
        model.load_state_dict(stock.state_dict())
        return stock, model

    def test_same_detections(self, models):
        stock, model = (m.eval() for m in models)
        assert {type(p) for p in stock.roi_heads.box_predictor} == {FastRCNNOutputLayers}
        assert {type(p) for p in model.roi_heads.box_predictor} == {TDEOutputLayers}
        with torch.no_grad():
            expected, actual = (
                m([{"image": torch.arange(3 * 64 * 96).reshape(3, 64, 96) % 255.0}])[0]["instances"]
                for m in models
            )
        assert len(expected) == 30
        torch.testing.assert_close(actual.scores, expected.scores)
        torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(actual.pred_classes, expected.pred_classes)

    def test_same_losses(self, models):
        stock, model = models
        x = torch.randn(9, 32)
        boxes = Boxes(torch.tensor([[5.0, 5, 40, 50]]).repeat(9, 1))
        proposals = Instances((64, 96), proposal_boxes=boxes, gt_boxes=boxes)
        proposals.gt_classes = torch.arange(9) + 4  # 12 is the background
        losses = []
        for heads in (stock.roi_heads, model.roi_heads):
            torch.manual_seed(1)  # the federated loss draws classes
            with EventStorage():
                predictor = heads.box_predictor[1]
                losses.append(predictor.losses(predictor(x), [proposals]))
        assert losses[0].keys() == losses[1].keys()
        for key, value in losses[0].items():
            torch.testing.assert_close(losses[1][key], value)

    def test_a_predictor_with_other_scores_stays(self):
        class Own(FastRCNNOutputLayers):
            def predict_probs(self, predictions, proposals):
                return super().predict_probs(predictions, proposals)

        cfg = setup_tool(SMALL, [])
        model = instantiate(LazyConfig.load(SMALL).model)
        for predictor in model.roi_heads.box_predictor:
            predictor.__class__ = Own
        from tde_det.modeling.detector import convert_stock_predictors

        convert_stock_predictors(model)
        assert {type(p) for p in model.roi_heads.box_predictor} == {Own}
        with pytest.raises(InputError, match="no box predictor that can be adjusted"):
            calibrate(cfg, model, parse_chains("norcal")[0])

    def test_adjustments_of_the_config(self):
        cfg = setup_tool(SMALL, ["train.adjustments=['norcal gamma=0.3', tau_norm]"])
        for predictor in box_predictors(build_detector(cfg)):
            assert list(predictor.adjustments) == ["norcal", "tau_norm"]
            assert predictor.adjustments["norcal"].gamma == 0.3
        with pytest.raises(InputError, match="NCM changes softmax .* trains sigmoid scores"):
            build = setup_tool(SMALL, ["train.adjustments=['norcal', 'tau_norm']"])
            model = build_detector(build)
            calibrate(build, model, parse_chains("ncm")[0])


def test_train_resume_evaluate_and_calibrate(tmp_path):
    out = f"train.output_dir={tmp_path}"
    trainer(SMALL, out, "train.max_iter=2").train()
    assert (tmp_path / "inference/metrics.json").exists()
    resumed = trainer(SMALL, out, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    rates = [group["lr"] for group in resumed.optimizer.param_groups]
    assert all(0 < rate <= 0.01 for rate in rates)

    weights = f"train.init_checkpoint={tmp_path}/model_final.pth"
    cfg = setup_tool(SMALL, [out, weights])
    model = load_model(cfg)
    trained = resumed.model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    results = Trainer.test(cfg, model)
    assert set(results) == {"bbox", "segm"}

    model = load_model(cfg, use="calibrate")
    calibrate(cfg, model, parse_chains("norcal gamma=0.5")[0])
    path = tmp_path / "calibrated.pth"
    torch.save({"model": model.state_dict()}, path)
    calibrated = load_model(setup_tool(SMALL, [out, f"train.init_checkpoint={path}"]))
    for predictor in box_predictors(calibrated):
        assert predictor.adjustments["norcal"].gamma == 0.5


@pytest.mark.skipif(not os.path.isdir(PHOTOGRAPHS), reason="REAL_DATA names no folder")
def test_a_reduced_vitdet_on_photographs(tmp_path):
    """In a process of its own: Detectron2 reads DETECTRON2_DATASETS once."""
    command = ["tools/train_net.py", "--config-file", f"{LAZY}/lvis_vitdet_b_cascade_tde.py"]
    subprocess.run(
        [sys.executable, *command, *REDUCED, f"train.output_dir={tmp_path}"],
        cwd=REPOSITORY,
        env={**os.environ, "DETECTRON2_DATASETS": PHOTOGRAPHS},
        check=True,
        capture_output=True,
    )
    state = torch.load(tmp_path / "model_final.pth")["model"]
    means = [value for key, value in state.items() if key.endswith("feature_mean")]
    assert len(means) == 3 and all(mean.any() for mean in means)
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize(
    "override, message",
    [
        ("MODEL.WEIGHTS", "init_checkpoint: a .py config is changed by path.key=value"),
        ("model.roi_headz.num_classes=3", "the config has no model.roi_headz"),
        ("model.roi_heads.box_predictors.9.x=3", "box_predictors.9"),
        ("train.max_iter=[1", "train.max_iter=.1: no viable"),
        ("~train.max_iter=1", "~train"),
        ("train.max_iter=many", "lazy_small.py: Type mismatch .*train.max_iter"),
        ("dataloader.train.sampler=Nearest", "DATALOADER.SAMPLER_TRAIN is 'Nearest'"),
        ("model.roi_heads.num_classes=13", "has 12 classes, but model.roi_heads.num_classes is 13"),
        (
            "train.init_checkpoint=nothing.pth",
            "train.init_checkpoint is nothing.pth, which does not",
        ),
        ("train.adjustments=['norcal gama=0.3']", "train.adjustments: 'gama=0.3'"),
        ("model.roi_heads.nms=3", "model of .*lazy_small.py cannot be made: TypeError.*nms"),
    ],
)
def test_bad_overrides(override, message, tmp_path):
    with pytest.raises(InputError, match=message):
        trainer(SMALL, f"train.output_dir={tmp_path}", override).train()


@pytest.mark.parametrize(
    "text, message",
    [
        ("model = dict(", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError: .*nothing_of_this_name"),
        ("raise RuntimeError('too old')", "RuntimeError: too old"),
        ("train = dict(output_dir='x')", "has no model.roi_heads.num_classes"),
    ],
)
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(InputError, match=f"config.py.*{message}"):
        read_config(str(path))
    with pytest.raises(InputError, match="other.py does not exist"):
        read_config(str(tmp_path / "other.py"))


def test_yaml_and_py_have_their_own_overrides():
    with pytest.raises(InputError, match="train.seed=1: a yaml config is changed by KEY VALUE"):
        read_config(f"{REPOSITORY}/configs/lvis_cascade_tde.yaml", ["train.seed=1"])
    words = ["--config-file", SMALL, "train.seed=1", "SEED", "2", "model.a.0.b=[1,2]"]
    args = parse_args(make_parser("x", "y"), words)
    assert args.opts == ["train.seed=1", "SEED", "2", "model.a.0.b=[1,2]"]


def test_what_is_read_of_it():
    cfg = read_config(SMALL, ["dataloader.train.sampler=ClassBalancedSampler", "train.seed=7"])
    lazy = LazyConfig.load(SMALL)
    assert cfg.SEED == 7 and cfg.DATALOADER.SAMPLER_TRAIN == "ClassBalancedSampler"
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert lazy.model.roi_heads.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert lazy.train.output_dir == cfg.OUTPUT_DIR and cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.MASK_ON and cfg.INPUT.FORMAT == "BGR"
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (96, 96)
    assert OmegaConf.select(lazy, "train.adjustments") is None and cfg.MODEL.ADJUSTMENTS == []
