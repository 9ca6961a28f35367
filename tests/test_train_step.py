"""Steps in micro-batches and steps that are skipped, on tiny detectors in this process."""

import copy
import functools
import math

import pytest
import torch
from conftest import REPOSITORY
from detectron2.engine import default_argument_parser
from tiny_trainer import NUM_CLASSES as C
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tde_det.adjustments.feature_mean import FeatureMean
from tde_det.class_counts import ClassCounts
from tde_det.distributed import StepSum
from tde_det.engine import Trainer, setup
from tde_det.engine.train_step import AMPTrainStep, TrainStep
from tde_det.errors import InputError
from tde_det.losses import LDAM, EQLv2, Seesaw
from tde_det.modeling import box_predictors

# No random samples of anchors and RoIs: all anchors, and 20 proposals of every image.
EVERY = (
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
    *("MODEL.RPN.NMS_THRESH", 1.0, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**6, "MODEL.MASK_ON", False),
    *(
        "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        "[0.1]",
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
        "(0.1, 0.1, 0.1)",
    ),
    *("MODEL.FPN.NORM", "", "MODEL.RESNETS.NORM", "GN", "SOLVER.BASE_LR", 0.001),
)


@pytest.fixture
def trainer(trainer, tmp_path):
    small = (
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3, "SOLVER.WARMUP_ITERS", 0),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    )
    return functools.partial(trainer, *small, "OUTPUT_DIR", tmp_path / "out")


def copies(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


class TestAccumulate:
    @pytest.mark.parametrize("loss", ["cross_entropy", "eqlv2", "ldam"])
    def test_equals_one_large_batch(self, trainer, tmp_path, loss):
        """A step's update, x̄ and other statistics, up to rounding."""
        # EQLv2 has scores that TDE does not fit.
        opts, results = (*EVERY, "MODEL.LONG_TAIL.LOSS", loss, "MODEL.TDE.ALPHA", 0), []
        for n in (1, 2, 4):
            opts_of_n = ("SOLVER.ACCUMULATE", n, "OUTPUT_DIR", tmp_path / str(n))
            run = trainer(*opts, *opts_of_n, "SOLVER.MAX_ITER", 1)
            start = copies(run.model)
            run.train()
            results.append(copies(run.model))
        assert results[0]["roi_heads.box_predictor.0.adjustments.tde.feature_mean"].any()
        for key in start:
            update = results[0][key].double() - start[key]
            for result in results[1:]:
                error = (result[key].double() - start[key] - update).abs().max()
                assert error <= 1e-3 * update.abs().max() + 1e-7, key

    def test_feature_mean(self):
        """Against one number at a time; parts without foreground, or without boxes, too."""
        torch.manual_seed(0)
        module = FeatureMean(4, 0.9).double()
        expected = torch.zeros(4, dtype=torch.float64)
        for parts in (3, 1, 2, 4):
            features = []
            module.step_sum.parts = parts
            for part in range(parts):
                x = torch.randn(3 * (part != 1), 4, dtype=torch.float64)
                keep = torch.rand(len(x)) < (0.0 if part == 2 else 0.7)
                module.step_sum.part = part
                before = module.feature_mean.clone()
                module.update_mean(x, keep)
                assert part == parts - 1 or torch.equal(module.feature_mean, before)
                features += [row for row, k in zip(x, keep) if k]
            if features:
                expected = 0.9 * expected + sum(features) / len(features)
            torch.testing.assert_close(module.feature_mean, expected, rtol=1e-12, atol=1e-12)

    def test_a_broken_step_leaves_nothing(self):
        step_sum = StepSum()
        step_sum.parts = 3
        step_sum.add(torch.ones(2))  # and the step is skipped
        total = None
        for step_sum.part in range(3):
            assert total is None
            total = step_sum.add(torch.full((2,), 10.0**step_sum.part))
        assert total.tolist() == [111.0, 111.0]

    @pytest.mark.parametrize("kind", [Seesaw, EQLv2, LDAM])
    def test_statistics_of_losses(self, kind):
        """Those of EQL v2 and LDAM are of the whole batch; Seesaw's are so after it."""
        torch.manual_seed(0)
        counts = ClassCounts(torch.ones(C), torch.ones(C), 9)
        whole = kind(C, counts=counts)
        parts = copy.deepcopy(whole)
        for _ in range(3):
            logits, labels = torch.randn(12, C + 1), torch.randint(C + 1, (12,))
            whole(logits, labels)
            for part in range(3):
                for step_sum in (m for m in parts.modules() if isinstance(m, StepSum)):
                    step_sum.part, step_sum.parts = part, 3
                rows = slice(4 * part, 4 * part + 4)
                parts(logits[rows], labels[rows])
        for key, value in whole.state_dict().items():
            assert value.any()
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-6, atol=1e-6)

    def test_bad_values(self, trainer):
        with pytest.raises(InputError, match="SOLVER.ACCUMULATE is 3, which does not divide the 4"):
            trainer("SOLVER.ACCUMULATE", 3)
        with pytest.raises(InputError, match="SOLVER.ACCUMULATE must be at least 1"):
            trainer("SOLVER.ACCUMULATE", 0)
        with pytest.raises(InputError, match="SKIP_NONFINITE must be ≥ 0, got -1"):
            trainer("SOLVER.SKIP_NONFINITE", -1)
        with pytest.raises(InputError, match='ON_FULL_DISK must be "stop" or "continue", got "?'):
            trainer("SOLVER.ON_FULL_DISK", "go")


def spoil(trainer, iterations, what="loss"):
    """Make the loss, or the gradient alone, of some iterations NaN."""
    predictor = box_predictors(trainer.model)[-1]
    original = predictor.losses

    def losses(*args):
        result = original(*args)
        if trainer.iter in iterations and what == "loss":
            result["loss_cls"] = result["loss_cls"] * math.nan
        elif trainer.iter in iterations:
            result["loss_cls"].register_hook(lambda gradient: gradient * math.nan)
        return result

    predictor.losses = losses


class TestNonFinite:
    @pytest.mark.parametrize("what", ["loss", "gradient"])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_a_skipped_step_has_not_been(self, trainer, what, accumulate, monkeypatch):
        run = trainer("SOLVER.SKIP_NONFINITE", 1, "SOLVER.ACCUMULATE", accumulate)
        states = []
        after_step = run.after_step
        monkeypatch.setattr(
            run, "after_step", lambda: (states.append(copies(run.model)), after_step())
        )
        spoil(run, [1], what)
        run.train()
        assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
        assert not all(torch.equal(states[2][key], value) for key, value in states[0].items())
        assert run.iter == 3 and run._trainer.state_dict()["skipped_nonfinite"] == 1

    def test_one_too_many(self, trainer, tmp_path, log):
        run = trainer("SOLVER.SKIP_NONFINITE", 1)
        spoil(run, [1, 2])
        with pytest.raises(InputError) as error:
            run.train()
        message = str(error.value)
        assert message.startswith("iteration 2: the loss is not finite; image ids ")
        way_out = "SOLVER.SKIP_NONFINITE 1 is used up: take a lower SOLVER.BASE_LR"
        assert f"losses loss_cls_stage2 nan. {way_out}" in message
        assert len(message.splitlines()) == 1
        # The state before the bad step, with what is left of the allowance.
        last = tmp_path / "out" / (tmp_path / "out/last_checkpoint").read_text()
        assert last.name == "model_0000001.pth"
        state = torch.load(last, weights_only=False)
        assert all(torch.isfinite(v).all() for v in state["model"].values())
        again = trainer("SOLVER.SKIP_NONFINITE", 1, resume=True)
        assert again.start_iter == 2
        spoil(again, [2])
        with pytest.raises(InputError, match="iteration 2: the loss is not finite"):
            again.train()
        trainer("SOLVER.SKIP_NONFINITE", 2, resume=True).train()

    def test_weights_that_are_not_finite_are_not_saved(self, trainer, tmp_path):
        run = trainer("SOLVER.CHECKPOINT_PERIOD", 1)
        step = run._trainer.optimizer.step

        def explode():
            step()
            if run.iter == 1:
                box_predictors(run.model)[0].bbox_pred.bias.data.fill_(math.inf)

        run._trainer.optimizer.step = explode
        with pytest.raises(InputError, match="model_0000001.pth is not written: roi_heads.*finite"):
            run.train()
        assert [p.name for p in (tmp_path / "out").glob("*.pth")] == ["model_0000000.pth"]


def test_resume_with_a_random_seed(trainer, tmp_path):
    """SEED -1: the one that was drawn is in the checkpoint."""
    first = trainer("SEED", -1, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_ITER", 4)
    first.train()
    (tmp_path / "out/last_checkpoint").write_text("model_0000001.pth")
    second = trainer("SEED", -1, "SOLVER.MAX_ITER", 4, resume=True)
    second.train()
    assert second.start_iter == 2
    for key, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_resume_with_a_lazy_config(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_data))

    def train(resume):
        args = default_argument_parser().parse_args([])
        args.config_file, args.resume = f"{REPOSITORY}/tests/lazy_small.py", resume
        args.opts = [f"train.output_dir={tmp_path}", "train.checkpointer.period=1"]
        args.opts += ["train.accumulate=2", "train.seed=-1", f"model.roi_heads.num_classes={C}"]
        run = Trainer(setup(args))
        run.resume_or_load(resume)
        run.train()
        return run

    first = train(False)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    second = train(True)
    assert second.start_iter == 2 and second.max_iter == 4
    for key, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


class Losses(nn.Module):
    """A linear model whose loss is a mean over images."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, images):
        return {"loss": self.linear(torch.stack([i["image"] for i in images])).square().mean()}


@pytest.mark.parametrize("kind", [TrainStep, AMPTrainStep])
def test_half_precision_and_no_sync(kind, tmp_path):
    """Micro-batches give the update of the whole batch; DDP waits for the last of them."""
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1
    )
    try:
        batches = [[{"image": torch.randn(8), "image_id": i} for i in range(6)] for _ in range(3)]
        start = Losses()
        weights, reduced = [], []
        for n in (1, 3):
            model = DistributedDataParallel(copy.deepcopy(start))
            model.register_comm_hook(reduced, remember_bucket)
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            step = kind(model, batches, optimizer, accumulate=n)
            if kind is AMPTrainStep:
                step.precision, step.grad_scaler = torch.bfloat16, torch.amp.GradScaler("cpu")
            step._write_metrics = lambda *_: None
            for step.iter in range(3):
                step.run_step()
            weights.append(model.module.linear.weight.detach())
        assert len(reduced) == 6  # one for each step
        tolerance = 1e-6 if kind is TrainStep else 2e-2
        torch.testing.assert_close(*weights, rtol=tolerance, atol=tolerance)
        assert not torch.allclose(weights[0], start.linear.weight)
    finally:
        torch.distributed.destroy_process_group()


def remember_bucket(seen, bucket):
    seen.append(bucket.index())
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
