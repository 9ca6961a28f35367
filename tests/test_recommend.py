"""Adjustments chosen on some images and measured on the others, for any Detectron2 detector."""

import csv
import json
import shlex

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from tde_det.adjustments import ADJUSTMENTS
from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, load_model, setup_tool
from tde_det.errors import InputError
from tde_det.evaluation import LongTailEvaluator
from tde_det.evaluation.recommend import families_for, how_to_use, recommend, split_images
from tde_det.evaluation.sweep import chain_of, title_of
from tde_det.modeling import box_predictors, build_detector
from tde_det.modeling.build import TrainingSet
from tde_det.weight_files import write_weights

LAZY = f"{REPOSITORY}/tests/lazy_small.py"
YAML = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"
SMALL = (
    *("MODEL.ROI_HEADS.NUM_CLASSES", "12", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
)
STOCK = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.MASK_ON", "False")


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    settings = Settings(12, 96, train_images=8, val_images=8, seed=1)
    build_mini_lvis(str(root / "mini_lvis"), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


@pytest.fixture
def make():
    """A config and a model with random weights."""

    def make(config, *opts):
        cfg = setup_tool(config, [*(SMALL if config == YAML else ()), *opts], ["test data"])
        torch.manual_seed(0)
        model = build_detector(cfg).eval()
        for predictor in box_predictors(model):
            torch.nn.init.normal_(predictor.cls_score.weight)
            if predictor.is_normalized:
                predictor.adjustments["tde"].feature_mean.normal_()
        return cfg, model

    return make


def names_of(families):
    return [" + ".join(step.name for step in family[0]) or "none" for family in families]


@pytest.mark.parametrize(
    "config, opts, expected",
    [
        (  # its own setting last
            YAML,
            (),
            ["none", "tde", "norcal", "logit_adjustment", "fracal", "tde + norcal", "tde"],
        ),
        (
            YAML,
            ("MODEL.TDE.CLASSIFIER", "linear"),
            ["none", "tau_norm", "norcal", "logit_adjustment", "fracal", "tau_norm + norcal"],
        ),
        (
            YAML,
            STOCK,
            ["none", "tau_norm", "norcal", "logit_adjustment", "fracal", "tau_norm + norcal"],
        ),
        (
            LAZY,
            (),
            ["none", "tau_norm", "norcal", "logit_adjustment", "fracal", "tau_norm + norcal"],
        ),
    ],
)
def test_what_applies(make, config, opts, expected):
    cfg, model = make(config, *opts)
    assert names_of(families_for(box_predictors(model), TrainingSet(cfg))) == expected


def test_no_image_is_in_both_parts(root):
    data = read_lvis_json(str(root / "mini_lvis/mini_lvis_val.json"))
    for part in (0.25, 0.5):
        first, second = split_images(data, part)
        one, other = ({image["id"] for image in half["images"]} for half in (first, second))
        assert not one & other and len(one) == 8 * part and len(one | other) == 8
        for half in (first, second):
            ids = {image["id"] for image in half["images"]}
            wanted = [a for a in data["annotations"] if a["image_id"] in ids]
            assert half["annotations"] == wanted
        assert split_images(data, part) == [first, second]


@pytest.mark.parametrize("config, opts", [(LAZY, ()), (YAML, ()), (YAML, STOCK)])
def test_numbers_are_those_of_plain_runs(make, tmp_path, root, config, opts):
    """Each setting, applied to the model itself, on each part of the images alone."""
    cfg, model = make(config, *opts)
    loader = Trainer.build_test_loader(cfg, "mini_lvis_val")
    found = recommend(cfg, model, loader, "mini_lvis_val", str(tmp_path), 0.5)
    halves = split_images(read_lvis_json(str(root / "mini_lvis/mini_lvis_val.json")), 0.5)
    assert found.num_images == (4, 4)
    families = families_for(box_predictors(model), TrainingSet(cfg))
    chains = {title_of(chain): chain for family in families for chain in family}
    assert list(found.selected) == list(chains)
    aps = {title: metrics[found.task]["AP"] for title, metrics in found.selected.items()}
    assert aps[found.chosen] == max(aps.values()) and found.chosen in found.reported
    assert len(found.reported) == len(families) and {"none", found.current} <= found.reported.keys()

    # As it is, the model has its own setting.
    wanted = LongTailEvaluator("mini_lvis_val", ("bbox",))
    with torch.no_grad():
        for inputs in loader:
            wanted.process(inputs, model(inputs))
    for half, results in zip(halves, (found.selected, found.reported)):
        own = results[found.current]["bbox"]
        assert own == pytest.approx(wanted.evaluate(half)["bbox"], abs=1e-9, nan_ok=True)

    title = next(t for t in found.reported if "norcal" in t)
    for predictor in box_predictors(model):
        predictor.adjustments = chain_of(predictor, chains[title], TrainingSet(cfg))
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    evaluator = LongTailEvaluator("mini_lvis_val", tasks)
    with torch.no_grad():
        for inputs in loader:
            evaluator.process(inputs, model(inputs))
    for half, results in zip(halves, (found.selected, found.reported)):
        plain = evaluator.evaluate(half)
        for name, value in plain["bbox"].items():
            np.testing.assert_allclose(results[title]["bbox"][name], value, atol=1e-9)
    with open(tmp_path / "recommend.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["images"] for row in rows].count("report") == len(families)
    assert len(rows) == len(chains) + len(families)


def test_how_to_use(make):
    cfg, model = make(YAML)
    text = "MODEL.TDE.ALPHA 0.5 MODEL.ADJUSTMENTS \"['norcal gamma=0.2']\""
    assert how_to_use(cfg, model, "tde alpha=0.5 + norcal gamma=0.2") == text
    assert how_to_use(cfg, model, "none") == "MODEL.TDE.ALPHA 0"
    own = title_of(families_for(box_predictors(model), TrainingSet(cfg))[-1][0])
    assert own == f"tde alpha={cfg.MODEL.TDE.ALPHA:g} exempt=True"
    assert how_to_use(cfg, model, own) == "the config as it is"
    cfg, model = make(LAZY)
    assert how_to_use(cfg, model, "none") == "the config as it is"
    used = how_to_use(cfg, model, "tau_norm tau=0.5 + norcal gamma=0.1")
    assert used == "\"train.adjustments=['tau_norm tau=0.5', 'norcal gamma=0.1']\""
    adjusted = setup_tool(LAZY, [used.strip('"')])
    assert list(box_predictors(build_detector(adjusted))[0].adjustments) == ["tau_norm", "norcal"]


def test_errors(make, tmp_path, root):
    cfg, model = make(LAZY)
    loader = Trainer.build_test_loader(cfg, "mini_lvis_val")
    for part in (0, 1, -1, float("nan")):
        with pytest.raises(InputError, match=r"must be in \(0, 1\)"):
            recommend(cfg, model, loader, "mini_lvis_val", str(tmp_path), part)
    with pytest.raises(InputError, match="the images to choose on have no annotations"):
        recommend(cfg, model, loader, "mini_lvis_val", str(tmp_path), 0.01)
    assert json.loads((root / "mini_lvis/mini_lvis_val.json").read_text())["annotations"]


def test_adjustments_of_the_config_are_switched_off(make):
    cfg, model = make(YAML, "MODEL.ADJUSTMENTS", "['norcal gamma=0.9']")
    assert how_to_use(cfg, model, "none") == "MODEL.TDE.ALPHA 0 MODEL.ADJUSTMENTS \"['none']\""
    cfg, model = make(LAZY, "train.adjustments=['norcal gamma=0.9']")
    used = how_to_use(cfg, model, "none")
    assert used == "\"train.adjustments=['none']\""
    adjusted = setup_tool(LAZY, [used.strip('"')])
    assert not box_predictors(build_detector(adjusted))[0].adjustments


@pytest.mark.parametrize("opts", [(), STOCK])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("carried", ["ncm", "prototypes"])
def test_the_words_apply_what_was_measured(make, tmp_path, opts, listed, carried):
    """And nothing else, whatever the config lists and the checkpoint carries."""
    weights = str(tmp_path / "carrying.pth")
    own = [*opts, "MODEL.WEIGHTS", weights, "MODEL.ADJUSTMENTS", str([carried] * listed)]
    cfg, model = make(YAML, *own)
    for predictor in box_predictors(model):
        statistics = {"center": torch.rand(32), "class_means": torch.randn(12, 32)}
        statistics["images"] = torch.ones(12)
        kind = ADJUSTMENTS[carried]
        predictor.adjustments[carried] = kind(*(statistics[name] for name in kind.statistics))
    write_weights(weights, model.state_dict(), cfg.dump(), "softmax")
    families = families_for(box_predictors(load_model(cfg)), TrainingSet(cfg))
    chains = {title_of(family[-1]): family[-1] for family in families}
    assert {"none", "norcal gamma=1.5", "ncm temperature=64"} <= chains.keys()
    chain = "prototypes strength=16 + norcal gamma=0.4"
    assert (chain in chains) == (carried == "prototypes")  # ncm does not count images
    for title, chain in chains.items():
        use = how_to_use(cfg, model, title)
        words = [] if use == "the config as it is" else shlex.split(use)
        used = load_model(setup_tool(YAML, [*SMALL, *own, *words]))
        for predictor, other in zip(box_predictors(used), box_predictors(model), strict=True):
            wanted = chain_of(other, chain, TrainingSet(cfg))
            assert predictor.adjustments.describe() == wanted.describe()
            for name in wanted.keys() - {"tde"}:
                given, expected = (a[name].state_dict() for a in (predictor.adjustments, wanted))
                torch.testing.assert_close(given, expected)
