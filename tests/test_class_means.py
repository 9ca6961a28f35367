"""MODEL.ADJUSTMENTS with class means: a training measures them at its end."""

import pytest
import torch

from tde_det.engine import Trainer, load_model
from tde_det.engine import class_means as module
from tde_det.engine.feature_statistics import foreground_statistics
from tde_det.errors import InputError
from tde_det.modeling import box_predictors

PROTOTYPES = ("MODEL.ADJUSTMENTS", "['prototypes strength=3']", "MODEL.TDE.ALPHA", 0)


def kept(model):
    return [dict(p.adjustments["prototypes"].named_buffers()) for p in box_predictors(model)]


def test_the_last_checkpoint_has_those_of_the_trained_model(trainer, tmp_path):
    trained = trainer(*PROTOTYPES, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2)
    trained.train()
    cfg = trained.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    model = load_model(cfg)
    features = foreground_statistics(cfg, model)  # of eight images, all are taken
    for stage, own in zip(kept(model), features):
        means = own.sums / own.counts.unsqueeze(1)  # NaN for classes without a sampled box
        expected = (means - own.mean()).float()
        torch.testing.assert_close(stage["class_means"], expected, equal_nan=True)
        assert torch.isfinite(stage["class_means"]).any()
        torch.testing.assert_close(stage["center"], own.mean().float())
    described = box_predictors(model)[0].adjustments.describe()
    assert described == "prototypes strength=3 prior=10 exempt=True"

    cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000001.pth")  # before the pass
    with pytest.raises(InputError, match="model_0000001.pth: .*prototypes has no class means"):
        load_model(cfg)
    again = trainer(*PROTOTYPES, "SOLVER.MAX_ITER", 4, resume=True)
    before = [stage["center"].clone() for stage in kept(again.model)]
    again.train()
    for old, stage in zip(before, kept(again.model)):
        assert not torch.equal(old, stage["center"])


def test_evaluations_in_training_have_those_of_the_moment(trainer, monkeypatch):
    seen = []

    def evaluate(cls, cfg, model, evaluators=None):
        seen.append([stage["center"].clone() for stage in kept(model)])
        return {}

    monkeypatch.setattr(Trainer, "test", classmethod(evaluate))
    opts = ("DATASETS.TEST", "('mini_lvis_val',)", "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 2)
    trainer(*PROTOTYPES, *opts).train()
    assert len(seen) == 2
    for first, second in zip(*seen):
        assert torch.isfinite(first).all() and not torch.equal(first, second)


def test_a_finished_training_measures_those_that_are_named_later(trainer, tmp_path):
    trainer("SOLVER.MAX_ITER", 2).train()
    later = trainer(*PROTOTYPES, "SOLVER.MAX_ITER", 2, resume=True)
    later.train()
    assert all(torch.isfinite(stage["center"]).all() for stage in kept(later.model))


def test_no_pass_without_need(trainer, monkeypatch):
    monkeypatch.setattr(module, "foreground_statistics", lambda *_, **__: pytest.fail("a pass"))
    trainer("MODEL.ADJUSTMENTS", "['norcal']", "SOLVER.MAX_ITER", 1).train()


def test_a_training_goes_on_as_without_the_pass(trainer, tmp_path):
    weights = []
    for name, opts in (("with", PROTOTYPES), ("without", ())):
        folder = ("OUTPUT_DIR", tmp_path / name, "TEST.EVAL_PERIOD", 1)
        trained = trainer(*opts, *folder, "SOLVER.MAX_ITER", 3)
        trained.train()
        weights.append(dict(trained.model.named_parameters()))
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
