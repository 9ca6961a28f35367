"""What checkpoints may be used for, and what decoupled training freezes."""

import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from test_box_predictor import COUNTS, TINY, make_inputs

from tde_det.adjustments import NorCal, TauNorm
from tde_det.engine import load_model, read_config
from tde_det.engine.checkpoints import POLICIES, Checkpointer, activation_of
from tde_det.engine.decoupling import freeze_all_but_classifier
from tde_det.errors import InputError
from tde_det.modeling import box_predictors

RECORDS = [{"annotations": [{"category_id": c} for c in range(5)]}]
HEADS = ("lvis_cascade_tde.yaml", "lvis_mask_rcnn_tde.yaml")
LOSS = "MODEL.LONG_TAIL.LOSS"
FACTUAL = ("MODEL.TDE.ALPHA", 0.0)
STOCK = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads")


@pytest.fixture
def config(load_config):
    """A config with a registered data set that is in no json."""

    def load(name=HEADS[0], *opts, linear=True):
        classifier = ("MODEL.TDE.CLASSIFIER", "linear") if linear else ()
        return load_config(name, *TINY, *classifier, "DATASETS.TRAIN", ("toy",), *opts)

    DatasetCatalog.register("toy", lambda: RECORDS)
    yield load
    DatasetCatalog.remove("toy")


@pytest.fixture
def save(tmp_path):
    """Save a model as a training does; the path."""

    def run(model, name="x"):
        trainer = {"activation": activation_of(model)}
        DetectionCheckpointer(model, str(tmp_path)).save(name, trainer=trainer)
        return str(tmp_path / f"{name}.pth")

    return run


class TestKindsOfScores:
    """Scores of one kind must not be read as those of another."""

    @pytest.mark.parametrize("use", ["inference", "calibrate", "lws"])
    @pytest.mark.parametrize("linear", [True, False])
    def test_are_checked(self, config, save, use, linear):
        gol = config(HEADS[0], LOSS, "gol", *FACTUAL, linear=linear)
        path = save(build_model(gol))
        for other in ("cross_entropy", "seesaw"):
            model = build_model(config(HEADS[0], LOSS, other, *FACTUAL, linear=linear))
            message = "trained for gumbel scores, this config makes them .*softmax: set MODEL.LONG"
            with pytest.raises(InputError, match=message):
                Checkpointer(model, use=use).load(path)
        Checkpointer(build_model(gol), use=use).load(path)

    @pytest.mark.parametrize("use", ["train", "crt"])
    def test_may_change_in_training(self, config, save, use):
        path = save(build_model(config(HEADS[0], LOSS, "gol")))
        for other in ("cross_entropy", "ecm"):
            model = build_model(config(HEADS[0], LOSS, other))
            Checkpointer(model, use=use).load(path)
            cfg = config(HEADS[0], LOSS, other)
            cfg.MODEL.WEIGHTS = save(model, "other")
            load_model(cfg)

    def test_a_checkpoint_that_does_not_say_is_taken(self, config, tmp_path):
        model = build_model(config(HEADS[0], LOSS, "gol"))
        for name, trainer in (("one", {}), ("two", {"trainer": {"iteration": 5}})):
            DetectionCheckpointer(model, str(tmp_path)).save(name, **trainer)
            Checkpointer(build_model(config()), use="inference").load(str(tmp_path / f"{name}.pth"))

    def test_stock_heads(self, config, save):
        paths = [
            save(build_model(config(HEADS[0], LOSS, "gol")), "gol"),
            save(build_model(config(HEADS[0], linear=False)), "tde"),
            save(build_model(config()), "linear"),
        ]
        stock = build_model(config(HEADS[0], *STOCK))
        for path, message in zip(paths, ("gumbel scores", "unknown roi_heads.box_predictor.0.adj")):
            with pytest.raises(InputError, match=message):
                Checkpointer(stock).load(path)
        Checkpointer(stock).load(paths[2])
        assert activation_of(stock) == "softmax"


class TestInference:
    def test_what_does_not_fit(self, config, save):
        cfg = config()
        model = build_model(cfg)
        cfg.MODEL.WEIGHTS = save(model)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
        message = "x.pth: the checkpoint has another shape for roi_heads.box_predictor.0.cls_score"
        with pytest.raises(InputError, match=message):
            load_model(cfg)

    def test_a_linear_checkpoint_in_a_normalised_model(self, config, save):
        """Its biases are dropped, which evaluation warns of and calibration refuses."""
        path = save(build_model(config()))
        Checkpointer(build_model(config(linear=False))).load(path)
        with pytest.raises(InputError, match="unknown roi_heads.box_predictor.0.cls_score.bias"):
            Checkpointer(build_model(config(linear=False)), use="calibrate").load(path)

    @pytest.mark.parametrize(
        "adjustment, opts, message",
        [
            (NorCal(COUNTS, COUNTS), (LOSS, "gol", *FACTUAL), "NorCal changes softmax"),
            (TauNorm(), (), "TauNorm divides class weights"),
        ],
    )
    def test_adjustments_of_the_checkpoint_must_fit(
        self, config, tmp_path, adjustment, opts, message
    ):
        model = build_model(config())
        for predictor in box_predictors(model):
            predictor.adjustments["norcal" if "Nor" in message[:3] else "tau_norm"] = adjustment
        DetectionCheckpointer(model, str(tmp_path)).save("x")
        cfg = config(HEADS[0], *opts, linear=False)
        cfg.MODEL.WEIGHTS = str(tmp_path / "x.pth")
        with pytest.raises(InputError, match=f"x.pth: MODEL.ADJUSTMENTS, MODEL.TDE: {message}"):
            load_model(cfg)

    def test_keys_of_earlier_versions(self, config, tmp_path):
        """Feature means are found under their old name; calibrated ones would be ignored."""
        cfg = config(linear=False)
        state = build_model(cfg).state_dict()
        for key in list(state):
            if key.endswith("feature_mean"):
                value = torch.rand(state.pop(key).shape)
                state[key.replace("adjustments.tde", "cls_score")] = value
        cfg.MODEL.WEIGHTS = str(tmp_path / "x.pth")
        torch.save({"model": state}, cfg.MODEL.WEIGHTS)
        for k, predictor in enumerate(box_predictors(load_model(cfg))):
            for name, value in predictor.adjustments["tde"].named_buffers():
                assert torch.equal(value, state[f"roi_heads.box_predictor.{k}.cls_score.{name}"])
        state["roi_heads.box_predictor.0.calibration.offset"] = torch.ones(5)
        torch.save({"model": state}, cfg.MODEL.WEIGHTS)
        with pytest.raises(InputError, match="unknown roi_heads.box_predictor.0.calibration.offse"):
            load_model(cfg)

    @pytest.mark.parametrize("use", POLICIES)
    @pytest.mark.parametrize("resume", [True, False])
    @pytest.mark.parametrize("where", ["adjustments.tde", "cls_score"])
    def test_keys_that_nothing_reads_any_more(
        self, config, tmp_path, monkeypatch, use, resume, where
    ):
        """A checkpoint with them fits as if it did not have them."""
        model = build_model(config(linear=False))
        state = model.state_dict()
        for k in range(3):
            predictor = f"roi_heads.box_predictor.{k}."
            state[predictor + where + ".foreground_cosine"] = torch.tensor([3.0, 4.0])
            state[predictor + "adjustments.tde.auto_alpha"] = torch.tensor(1.0)
        torch.save({"model": state}, tmp_path / "x.pth")
        (tmp_path / "last_checkpoint").write_text("x.pth")
        found = []
        monkeypatch.setattr(
            DetectionCheckpointer, "_log_incompatible_keys", lambda _, keys: found.append(keys)
        )
        path = "" if resume else str(tmp_path / "x.pth")
        Checkpointer(model, str(tmp_path), use).resume_or_load(path, resume=resume)
        (keys,) = found
        assert not any(keys.missing_keys + keys.unexpected_keys + keys.incorrect_shapes)


class TestDecoupling:
    @pytest.mark.parametrize("linear", [True, False])
    @pytest.mark.parametrize("method", ["crt", "lws"])
    def test_only_the_classifier_has_gradients(self, config, method, linear):
        model = build_model(config(linear=linear))
        freeze_all_but_classifier(model, method)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        keys = ["class_scale"] if method == "lws" else ["weight", "bias"] if linear else ["weight"]
        assert trained == {
            f"roi_heads.box_predictor.{stage}.cls_score.{key}" for stage in range(3) for key in keys
        }
        with EventStorage():
            sum(model.train()(make_inputs()).values()).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (name in trained)
        if not linear:
            assert not box_predictors(model)[0].adjustments["tde"].feature_mean.any()

    def test_needs_box_predictors(self, config):
        with pytest.raises(InputError, match="no box predictor that can be adjusted: .*MODEL.ROI"):
            freeze_all_but_classifier(build_model(config(HEADS[0], *STOCK)), "crt")


class TestWhatIsFrozen:
    @pytest.fixture
    def started(self, save):
        """Load a checkpoint of some model to train another's classifier."""

        def start(method, saved, wanted):
            path = save(build_model(saved))
            Checkpointer(build_model(wanted), use=method).load(path)

        return start

    def test_fits(self, config, started):
        for linear in (True, False):
            cfg = config(linear=linear)
            started("lws", cfg, cfg)
            started("crt", cfg, config(HEADS[0], LOSS, "seesaw"))

    @pytest.mark.parametrize("method", ["crt", "lws"])
    def test_does_not_fit(self, config, started, method):
        cascade, standard = config(HEADS[0]), config(HEADS[1])
        for saved, wanted in ((cascade, standard), (standard, cascade)):
            with pytest.raises(InputError, match="(no fitting|unknown) roi_heads.box_.* to freeze"):
                started(method, saved, wanted)
        with pytest.raises(InputError, match="has no fitting roi_heads.mask_head"):
            started(method, config(HEADS[0], "MODEL.MASK_ON", False), cascade)

    def test_lws_keeps_the_classifier(self, config, started):
        linear, normalised = config(), config(linear=False)
        for saved, wanted, message in (
            (linear, normalised, "unknown roi_heads.box_predictor.0.cls_score.bias to freeze"),
            (normalised, linear, "no fitting roi_heads.box_predictor.0.cls_score.bias to freeze"),
            (config(HEADS[0], LOSS, "gol"), linear, "trained for gumbel scores"),
            (config(HEADS[0], LOSS, "federated"), linear, "trained for sigmoid scores"),
        ):
            started("crt", saved, wanted)
            with pytest.raises(InputError, match=message):
                started("lws", saved, wanted)


def test_read_config_knows_the_keys():
    path = f"{REPOSITORY}/configs/{HEADS[0]}"
    cfg = read_config(path, [LOSS, "seesaw", "MODEL.LONG_TAIL.SEESAW.P", "1"])
    assert cfg.MODEL.LONG_TAIL.SEESAW.P == 1.0
