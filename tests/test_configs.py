"""Every config file loads, builds, and says nothing that its base says already."""

import glob
import os

import pytest
import torch
import yaml
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_model

from tde_det import add_tde_config
from tde_det.class_counts import ClassCounts
from tde_det.engine import read_config
from tde_det.engine.setup import unfreeze_without_weights
from tde_det.errors import InputError
from tde_det.modeling import box_predictors

FILES = sorted(os.path.basename(f) for f in glob.glob(os.path.join(REPOSITORY, "configs/*.yaml")))


def effective(name):
    cfg = get_cfg()
    add_tde_config(cfg)
    if name:
        cfg.merge_from_file(os.path.join(REPOSITORY, "configs", name))
    return cfg


def leaves(node, prefix=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def lookup(cfg, path):
    for key in path:
        cfg = cfg[key]
    return cfg


@pytest.mark.parametrize("name", FILES)
def test_no_key_without_effect(name):
    with open(os.path.join(REPOSITORY, "configs", name)) as f:
        content = yaml.safe_load(f)
    base = effective(content.pop("_BASE_", None))
    content.pop("VERSION", None)
    cfg = effective(name)
    for path in leaves(content):
        assert lookup(cfg, path) != lookup(base, path), f"{'.'.join(path)} repeats its base"


@pytest.mark.parametrize("name", [f for f in FILES if not f.startswith("Base")])
def test_builds(name, load_config, monkeypatch):
    # LVIS, whose class counts some need, is not here.
    counts = ClassCounts(torch.ones(1203), torch.ones(1203), 1203)
    monkeypatch.setattr("tde_det.modeling.build.class_counts", lambda names, num_classes: counts)
    cfg = load_config(name)
    # Depth and width cost seconds per file and are the backbone's own business.
    if not name.startswith("mini"):
        assert cfg.MODEL.RESNETS.DEPTH in (50, 101)
        cfg.MODEL.RESNETS.DEPTH = 50
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    model = build_model(cfg)
    predictors = box_predictors(model)
    assert len(predictors) == (3 if "cascade" in name else 1)
    for predictor in predictors:
        if cfg.MODEL.TDE.CLASSIFIER == "linear":
            assert not predictor.is_normalized and not predictor.adjustments
        else:
            assert predictor.cls_score.kind == cfg.MODEL.TDE.CLASSIFIER
            assert predictor.adjustments["tde"].alpha == cfg.MODEL.TDE.ALPHA
        assert predictor.cls_score.weight.shape[0] == cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1


def test_main_config_is_the_papers():
    cfg = effective("lvis_cascade_tde.yaml")
    expected = CfgNode(
        {
            "CLASSIFIER": "causal_norm",
            "NUM_HEADS": 2,
            "TAU": 16.0,
            "GAMMA": 1 / 32,
            "MU": 0.9998,
            "ALPHA": 1.5,
            "BACKGROUND_EXEMPT": True,
        }
    )
    assert expected == cfg.MODEL.TDE
    assert cfg.MODEL.RESNETS.DEPTH == 101
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)
    assert cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((800,), 1333)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)


def test_keys_can_be_added_twice():
    """As a notebook's cell that is run again does."""
    cfg = get_cfg()
    for _ in range(2):
        add_tde_config(cfg)
    assert cfg.MODEL.TDE.ALPHA == 1.5


def test_a_config_saved_by_an_earlier_version(tmp_path):
    """Of a run's folder, say, which the report reads."""
    cfg = effective("lvis_cascade_tde.yaml")
    saved = cfg.dump().replace("    ALPHA: 1.5\n", "    ALPHA: 1.5\n    AUTO_ALPHA: false\n")
    assert saved != cfg.dump()
    (tmp_path / "config.yaml").write_text(saved)
    assert read_config(str(tmp_path / "config.yaml")).MODEL.TDE == cfg.MODEL.TDE


@pytest.mark.parametrize("name", [f for f in FILES if f != "Base-RCNN-FPN.yaml"])
def test_inference_at_lvis_own_setting(name):
    cfg = effective(name)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-4


def test_training_without_weights_does_not_freeze(tmp_path):
    def norm(weights, resume):
        cfg = effective("lvis_cascade_tde.yaml")
        cfg.OUTPUT_DIR = str(tmp_path)
        if weights is not None:
            cfg.MODEL.WEIGHTS = weights
        unfreeze_without_weights(cfg, resume)
        return cfg, (cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT)

    frozen, norm_of_frozen = norm(None, False)
    trained, norm_of_trained = norm("", False)
    assert norm_of_frozen == ("FrozenBN", 2) and norm_of_trained == ("BN", 0)
    assert norm("", True)[1] == ("BN", 0)  # there is nothing to go on from
    for begun, expected in ((frozen, ("FrozenBN", 2)), (trained, ("BN", 0))):
        backbone = build_backbone(begun)
        DetectionCheckpointer(torch.nn.ModuleDict({"backbone": backbone}), str(tmp_path)).save("x")
        assert norm("", True)[1] == norm(None, True)[1] == expected
        assert norm("", False)[1] == ("BN", 0) and norm(None, False)[1] == ("FrozenBN", 2)


def test_whole_numbers_for_floats_on_the_command_line():
    cfg = read_config(opts=["MODEL.TDE.ALPHA", "0", "MODEL.TDE.TAU", "-8"])
    assert cfg.MODEL.TDE.ALPHA == 0.0 and cfg.MODEL.TDE.TAU == -8.0
    with pytest.raises(InputError, match="MODEL.TDE.NUM_HEADS"):
        read_config(opts=["MODEL.TDE.NUM_HEADS", "2.5"])


def test_a_misspelt_key_shows_the_one_that_is_like_it(tmp_path):
    with pytest.raises(InputError, match=r"MODEL.TDE.ALPH. Is it MODEL.TDE.ALPHA\?$"):
        read_config(opts=["MODEL.TDE.ALPH", "1"])
    with pytest.raises(InputError, match="key: NO_SUCH_THING$"):
        read_config(opts=["NO_SUCH_THING", "1"])
    path = tmp_path / "x.yaml"
    path.write_text("MODEL:\n  LONG_TAIL:\n    LOS: gol\n")
    with pytest.raises(InputError, match=r"LONG_TAIL.LOS. Is it MODEL.LONG_TAIL.LOSS\?"):
        read_config(str(path))


@pytest.mark.parametrize(
    "name, images", [("lvis_cascade_tde.yaml", 99388), ("lvis_v0.5_cascade_tde.yaml", 56740)]
)
def test_schedule_is_20_epochs(name, images):
    solver = effective(name).SOLVER
    epoch = images / solver.IMS_PER_BATCH
    assert [round(16 * epoch), round(19 * epoch)] == [*solver.STEPS]
    assert round(20 * epoch) == solver.MAX_ITER
