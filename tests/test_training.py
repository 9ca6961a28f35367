"""Trainings by the command line's own way: what they start from, go on from and refuse."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tde_det.adjustments import TauNorm
from tde_det.engine import Trainer
from tde_det.errors import InputError
from tde_det.modeling import box_predictors

LOSS = "MODEL.LONG_TAIL.LOSS"


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_decoupled_training(trainer, tmp_path, method):
    first = trainer("SOLVER.MAX_ITER", 2)
    first.train()
    trained = {k: v.clone() for k, v in first.model.state_dict().items()}
    opts = ("MODEL.LONG_TAIL.DECOUPLE", method, "MODEL.WEIGHTS", tmp_path / "model_final.pth")
    opts += ("DATALOADER.SAMPLER_TRAIN", "ClassBalancedSampler", "OUTPUT_DIR", tmp_path / "second")

    second = trainer(*opts, "SOLVER.MAX_ITER", 2)
    weight = "roi_heads.box_predictor.0.cls_score.weight"
    started_anew = not torch.equal(second.model.state_dict()[weight], trained[weight])
    assert started_anew == (method == "crt")
    second.train()
    changed = {
        k for k, v in second.model.state_dict().items() if not torch.equal(v, trained.get(k, v))
    }
    if method == "crt":  # buffers too: batch norm and the feature mean stay
        assert changed == {f"roi_heads.box_predictor.{k}.cls_score.weight" for k in range(3)}
    else:
        assert not changed
        scale = second.model.roi_heads.box_predictor[0].cls_score.class_scale
        assert (scale != 1).any()

    third = trainer(*opts, "SOLVER.MAX_ITER", 3, resume=True)
    assert third.start_iter == 2
    for key, value in second.model.state_dict().items():
        assert torch.equal(third.model.state_dict()[key], value), key


def test_a_new_training_starts_with_new_statistics(trainer, tmp_path):
    loss = (LOSS, "seesaw", "MODEL.TDE.CLASSIFIER", "linear")
    first = trainer(*loss, "SOLVER.MAX_ITER", 1)
    first.train()
    own = box_predictors(first.model)[0].classification_loss.samples
    assert own.sum() > 0
    opts = (*loss, "SOLVER.MAX_ITER", 2)
    resumed = trainer(*opts, resume=True)
    assert torch.equal(box_predictors(resumed.model)[0].classification_loss.samples, own)
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    anew = trainer(*opts, *weights, "OUTPUT_DIR", tmp_path / "other")
    assert not box_predictors(anew.model)[0].classification_loss.samples.any()


def test_what_is_not_trained(trainer, tmp_path, log):
    """Checkpoints that are calibrated, scaled, broken, or of another stage."""
    linear = ("MODEL.TDE.CLASSIFIER", "linear", "SOLVER.MAX_ITER", 1)
    first = trainer(*linear)
    for predictor in box_predictors(first.model):
        predictor.cls_score.learn_class_scale()
        predictor.cls_score.class_scale.data.fill_(2.0)
    first.checkpointer.save("scaled")
    opts = (*linear, "OUTPUT_DIR", tmp_path / "other", "MODEL.WEIGHTS")
    trainer(*opts, tmp_path / "scaled.pth")
    assert "learned by LWS stay" in log.text
    anew = trainer(*opts, tmp_path / "scaled.pth", "MODEL.LONG_TAIL.DECOUPLE", "crt")
    assert all((p.cls_score.class_scale == 1).all() for p in box_predictors(anew.model))

    for predictor in box_predictors(first.model):
        predictor.adjustments["tau_norm"] = TauNorm()
    first.checkpointer.save("calibrated")
    for decouple in ((), ("MODEL.LONG_TAIL.DECOUPLE", "crt")):
        with pytest.raises(InputError, match="calibrated.pth: it carries .* for inference"):
            trainer(*opts, tmp_path / "calibrated.pth", *decouple)
    (tmp_path / "junk.pth").write_text("junk")
    with pytest.raises(InputError, match="junk.pth is no checkpoint"):
        trainer(*opts, tmp_path / "junk.pth")
    for predictor in box_predictors(first.model):
        del predictor.adjustments["tau_norm"]
    first.train()
    with pytest.raises(InputError, match="other trained parameters.*OUTPUT_DIR"):
        trainer(*linear, "MODEL.LONG_TAIL.DECOUPLE", "lws", resume=True)


def test_what_decoupling_refuses(trainer, tmp_path):
    with pytest.raises(InputError, match="'lsw'"):
        trainer("MODEL.LONG_TAIL.DECOUPLE", "lsw")
    for resume in (False, True):
        with pytest.raises(InputError, match="give the model as MODEL.WEIGHTS"):
            trainer("MODEL.LONG_TAIL.DECOUPLE", "crt", resume=resume)
    (tmp_path / "model.pth").write_text("")
    with pytest.raises(InputError, match="overwrite.*another OUTPUT_DIR"):
        trainer("MODEL.LONG_TAIL.DECOUPLE", "crt", "MODEL.WEIGHTS", tmp_path / "model.pth")
    (tmp_path / "backbone").mkdir()
    backbone = tmp_path / "backbone/model.pth"
    torch.save({"model": {"backbone.fpn_lateral2.bias": torch.zeros(256)}}, backbone)
    for method in ("crt", "lws"):
        with pytest.raises(InputError, match="model.pth: .* has no fitting .* to freeze"):
            trainer("MODEL.LONG_TAIL.DECOUPLE", method, "MODEL.WEIGHTS", backbone)
    for opts in (("DECOUPLE", "crt"), ("LOSS", "seesaw")):
        with pytest.raises(InputError, match="no effect.*CascadeROIHeads: set it to"):
            key, value = f"MODEL.LONG_TAIL.{opts[0]}", opts[1]
            trainer(key, value, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads")


def test_resuming_with_another_loss(trainer, tmp_path):
    losses = ("MODEL.TDE.CLASSIFIER", "linear", "SOLVER.MAX_ITER", 1, LOSS)
    trainer(*losses, "gol").train()
    with pytest.raises(InputError, match="trained for gumbel scores, this config .* softmax"):
        trainer(*losses, "cross_entropy", resume=True)
    trainer(*losses, "gol", resume=True)
    # A new training may start from it.
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "other")
    trainer(*losses, "cross_entropy", *weights).train()
    state = torch.load(tmp_path / "other/model_final.pth", weights_only=False)["trainer"]
    assert state["activation"] == "softmax"


def test_adjustments_are_not_trained(trainer, tmp_path):
    """The config's are in the checkpoints, where an evaluation finds them; they may be dropped."""
    opts = ("MODEL.ADJUSTMENTS", ["norcal gamma=0.3"], "SOLVER.MAX_ITER", 1)
    first = trainer(*opts)
    first.train()
    keys = {k for k in first.model.state_dict() if ".0.adjustments.norcal." in k}
    assert len(keys) == 5
    assert not any("adjustments" in name for name, _ in first.model.named_parameters())
    resumed = trainer(*opts, resume=True)
    assert resumed.start_iter == 1
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "other")
    trainer(*opts, *weights)


@pytest.mark.parametrize(
    "opts, message",
    [
        (("SOLVER.CHECKPOINT_PERIOD", 0), "SOLVER.CHECKPOINT_PERIOD must be at least 1, got 0"),
        (("SOLVER.BASE_LR", -1.0), "SOLVER.BASE_LR must be at least 0, got -1.0"),
        (("SEED", 2**32), "SEED must be below"),
        (("MODEL.DEVICE", "gpu"), "MODEL.DEVICE is 'gpu'"),
        (("DATALOADER.REPEAT_THRESHOLD", -1.0), "REPEAT_THRESHOLD must be at least 0, got -1.0"),
    ],
)
def test_no_training_starts_with(trainer, opts, message):
    with pytest.raises(InputError, match=message):
        trainer(*opts)


def written(folder):
    """The scalars in the event file that TensorBoard reads, by name and iteration."""
    events = EventAccumulator(str(folder)).Reload()
    names = events.Tags()["scalars"]
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in names}


@pytest.mark.parametrize("period", [2, 3, 0])
def test_every_evaluation_is_in_tensorboard(trainer, tmp_path, period, monkeypatch):
    results = []
    test = Trainer.test

    def kept(*args):
        results.append(test(*args))
        return results[-1]

    monkeypatch.setattr(Trainer, "test", staticmethod(kept))
    opts = ("DATASETS.TEST", ("mini_lvis_val",), "TEST.EVAL_PERIOD", period)
    extra = ("TEST.LVIS_EXTRA", ["pool", "calibration"])
    trainer(*opts, *extra, "SOLVER.MAX_ITER", 7, "SOLVER.BASE_LR", 0.0).train()
    steps = [i - 1 for i in range(1, 7) if period and i % period == 0] + [7]
    scalars = written(tmp_path)
    assert len(results) == len(steps)
    for task in ("bbox", "segm"):
        for name in ("AP", "APr", "APc", "APf", "ECE", "ECEr"):
            values = [result[task][name] for result in results]
            assert [*scalars[f"{task}/{name}"]] == steps
            assert [*scalars[f"{task}/{name}"].values()] == pytest.approx(values, nan_ok=True)
        assert [*scalars[f"{task}_pool/AP"]] == steps
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "bbox/APr" in line] == steps


@pytest.mark.parametrize("heads", ["Cascade", "Standard"])
def test_events_of_training(trainer, tmp_path, heads):
    opts = ("MODEL.ROI_HEADS.NAME", f"TDE{heads}ROIHeads", "SOLVER.MAX_ITER", 3)
    trainer(*opts).train()
    scalars = written(tmp_path)
    for stage in ("stage0/", "stage1/", "stage2/") if heads == "Cascade" else ("",):
        assert -1 <= min(scalars[f"{stage}tde/foreground_cosine"].values()) <= 1
        assert f"{stage}tde/mean_norm_change" in scalars
        groups = [f"{stage}probability/{name}" for name in ("rare", "common", "frequent")]
        probabilities = [v for g in groups for v in scalars.get(g, {}).values()]
        assert probabilities and all(0 <= p <= 1 for p in probabilities)


def test_augmented_evaluation_is_in_tensorboard(trainer, tmp_path, monkeypatch):
    result = {"bbox_TTA": {"APr": 12.5}}
    monkeypatch.setattr(Trainer, "test_with_tta", lambda *args: result)
    trainer("TEST.AUG.ENABLED", True, "SOLVER.MAX_ITER", 1).train()
    assert written(tmp_path)["bbox_TTA/APr"] == {1: 12.5}


def test_a_step_at_the_end(trainer):
    assert trainer("SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "(4, 6, 7)").cfg.SOLVER.STEPS == (4,)
