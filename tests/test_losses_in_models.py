"""The losses inside Detectron2's ROI heads and models, as a config builds them."""

import contextlib

import pytest
import torch
from conftest import scripted
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from test_box_predictor import TINY, make_inputs, make_proposals, spread

from tde_det.activations import DISTRIBUTIONS
from tde_det.adjustments import TDE
from tde_det.errors import InputError
from tde_det.losses import LOSSES
from tde_det.modeling import box_predictors
from tde_det.modeling.build import build_loss

C = 5
# Objects of each class in every image; the second is a crowd of class 4.
RECORDS = [
    {"annotations": [{"category_id": c} for c in (0, 0, 0, 1, 1, 2)]},
    {"annotations": [{"category_id": 0}, {"category_id": 4, "iscrowd": 1}]},
    {"annotations": [{"category_id": c, "iscrowd": 0} for c in (0, 1, 3)]},
    {"annotations": []},
    {},
]
HEADS = ("lvis_cascade_tde.yaml", "lvis_mask_rcnn_tde.yaml")
LOSS = "MODEL.LONG_TAIL.LOSS"


@pytest.fixture
def toy():
    """A registered data set that is in no json."""
    DatasetCatalog.register("toy", lambda: RECORDS)
    yield "toy"
    DatasetCatalog.remove("toy")


@pytest.fixture
def config(load_config, toy):
    def load(name="lvis_cascade_tde.yaml", *opts, linear=True):
        classifier = ("MODEL.TDE.CLASSIFIER", "linear") if linear else ()
        sampled = ("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 3)
        return load_config(name, *TINY, *classifier, *sampled, "DATASETS.TRAIN", (toy,), *opts)

    return load


def build_heads(cfg):
    """The ROI heads alone; a backbone takes most of a model's time and knows no loss."""
    shapes = {f"p{k}": ShapeSpec(channels=16, stride=2**k) for k in range(2, 6)}
    return build_roi_heads(cfg, shapes)


def head_inputs(with_objects):
    """Two images of 64 pixels: targets, features of an FPN, and proposals around the targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = make_inputs(2, with_objects=with_objects)
    features = {
        f"p{k}": torch.rand(2, 16, 64 >> k, 64 >> k, generator=generator) for k in range(2, 6)
    }
    proposals = []
    for _ in inputs:
        corners = 64 * torch.rand(30, 2, 2, generator=generator).sort(dim=1).values
        proposal = Instances((64, 64))
        proposal.proposal_boxes = Boxes(corners.flatten(1))
        proposal.objectness_logits = torch.zeros(30)
        proposals.append(proposal)
    return inputs, features, proposals


class TestLosses:
    @pytest.mark.parametrize("heads", HEADS)
    @pytest.mark.parametrize("amp", [False, True])
    @pytest.mark.parametrize("name", LOSSES)
    def test_all_train_and_infer(self, config, heads, amp, name):
        heads = build_heads(config(heads, LOSS, name)).train()
        context = torch.autocast("cpu", torch.bfloat16) if amp else contextlib.nullcontext()
        for with_objects in (True, False):
            inputs, features, proposals = head_inputs(with_objects)
            with EventStorage(), context:
                _, losses = heads(None, features, proposals, [x["instances"] for x in inputs])
                sum(losses.values()).backward()
            assert all(torch.isfinite(v) for v in losses.values())
        for predictor in box_predictors(heads):
            assert torch.isfinite(predictor.cls_score.weight.grad).all()
            assert predictor.cls_score.weight.grad.any()
        heads.eval()
        with torch.no_grad(), context:
            outputs, _ = heads(None, features, proposals)
        scores = torch.cat([x.scores for x in outputs])
        assert len(scores) and ((scores >= 0) & (scores <= 1)).all()

    @pytest.mark.parametrize("name", [n for n in LOSSES if n != "cross_entropy"])
    def test_the_predictors_loss_is_the_loss(self, config, name):
        cfg = config(HEADS[1], LOSS, name)
        predictor = build_heads(cfg).box_predictor.train()
        labels = [0, 3, C, C, 1]
        x = torch.rand(5, 32)
        with EventStorage():
            predictions = predictor(x)
            torch.manual_seed(0)
            losses = predictor.losses(predictions, make_proposals(labels))
        alone = build_loss(cfg)
        torch.manual_seed(0)
        assert losses["loss_cls"] == alone(predictions[0], torch.tensor(labels))
        with EventStorage():
            stock = FastRCNNOutputLayers.box_reg_loss
            boxes = Boxes(torch.tensor([[4.0, 4.0, 30.0, 30.0]]).repeat(5, 1)).tensor
            expected = stock(predictor, boxes, boxes + 1, predictions[1], torch.tensor(labels))
        assert losses["loss_box_reg"] == expected

    def test_federated_takes_detectron2s_keys(self, config):
        opts = ("MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", 2.0)
        loss = build_loss(config(HEADS[1], LOSS, "federated", *opts))
        assert loss.num_sampled == 3 and loss.sampling_weights.tolist() == [9, 4, 1, 1, 0]
        # More than the classes with objects, which are all that can be drawn.
        many = ("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 50)
        predictor = build_heads(config(HEADS[1], LOSS, "federated", *many)).box_predictor
        with EventStorage():
            losses = predictor.train().losses(predictor(torch.rand(1, 32)), make_proposals([4]))
        assert torch.isfinite(losses["loss_cls"])

    def test_count_of_images(self, config):
        by_image = config(
            HEADS[0], LOSS, "weighted_cross_entropy", "MODEL.LONG_TAIL.COUNT", "images"
        )
        assert build_loss(by_image).counts.tolist() == [3, 2, 1, 1, 1]
        assert build_loss(config(HEADS[0], LOSS, "ldam")).counts.tolist() == [5, 3, 1, 1, 1]

    def test_start_at_the_prior(self, config):
        for name in LOSSES:
            heads = build_heads(config(HEADS[1], LOSS, name, "MODEL.LONG_TAIL.PRIOR_PROB", 0.02))
            predictor = heads.box_predictor
            torch.nn.init.zeros_(predictor.cls_score.weight)
            predictor.eval()
            predictions = predictor(torch.rand(3, 32))
            (scores,) = predictor.predict_probs(predictions, make_proposals([0, 0, 0]))
            if name in ("sigmoid_focal", "cb_focal", "eql", "federated", "gol"):
                expected = 0.02
            elif name in ("eqlv2", "ecm"):
                expected = 0.02 / 2  # times objectness
            elif name == "seesaw":
                expected = 1 / C / 2
            else:
                expected = 1 / (C + 1)
            torch.testing.assert_close(scores[:, :C], torch.full((3, C), expected))

    def test_options_reach_the_loss(self, config):
        opts = ("MODEL.LONG_TAIL.SEESAW.P", 0.3, "MODEL.LONG_TAIL.SEESAW.OBJECTNESS", False)
        loss = build_loss(config(HEADS[0], LOSS, "seesaw", *opts))
        assert loss.p == 0.3 and loss.activation == "softmax"
        opts = (LOSS, "ldam", "SOLVER.MAX_ITER", 200, "MODEL.LONG_TAIL.LDAM.DRW_START")
        assert build_loss(config(HEADS[0], *opts, 0.75)).drw_start == 150
        assert build_loss(config(HEADS[0], *opts, 1.0)).drw_start == -1
        for name in LOSSES:  # no key is misspelled
            build_loss(config(HEADS[0], LOSS, name))

    def test_stateful_losses_survive_a_checkpoint(self, config, tmp_path):
        for name in ("eqlv2", "seesaw", "ldam"):
            model = build_model(config(HEADS[0], LOSS, name)).train()
            for predictor in box_predictors(model):  # a step alone may meet no foreground
                predictor.classification_loss(torch.randn(7, C + 1), torch.arange(7) % (C + 1))
            DetectionCheckpointer(model, str(tmp_path)).save(name)
            other = build_model(config(HEADS[0], LOSS, name))
            DetectionCheckpointer(other).load(str(tmp_path / f"{name}.pth"))
            for one, two in zip(box_predictors(model), box_predictors(other)):
                state = one.classification_loss.state_dict()
                assert state and all(v.any() for v in state.values())
                for key, value in state.items():
                    assert torch.equal(two.classification_loss.state_dict()[key], value)

    def test_inference_needs_no_training_set(self, config, caplog):
        for name in ("ldam", "federated", "ecm"):
            cfg = config(HEADS[1], LOSS, name, "DATASETS.TRAIN", ("not_there",))
            model = build_model(cfg).eval()
            with torch.no_grad():
                model(make_inputs(1, with_objects=False))
        loss = build_loss(config(HEADS[1], LOSS, "ldam", "DATASETS.TRAIN", ("not_there",)))
        assert "This model can infer, but not train" in caplog.text and "not_there" in caplog.text
        with pytest.raises(ValueError, match="LDAM needs counts"):
            loss(torch.zeros(1, C + 1), torch.zeros(1, dtype=torch.long))

    @pytest.mark.parametrize("name", ["seesaw", "eqlv2"])
    def test_scripting(self, config, name):
        torch.manual_seed(0)
        threshold = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        model = build_model(config(HEADS[1], LOSS, name, "MODEL.MASK_ON", False, *threshold)).eval()
        torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.02)
        image = {"image": torch.rand(3, 64, 64) * 255}
        with torch.no_grad():
            expected = model.inference([image], do_postprocess=False)[0]
            actual = scripted(model).inference([image], do_postprocess=False)[0]
        assert len(expected)
        torch.testing.assert_close(actual.scores, expected.scores)


class TestWithTDE:
    @pytest.mark.parametrize("heads", HEADS)
    @pytest.mark.parametrize(
        "name", [n for n, k in LOSSES.items() if k.activation in DISTRIBUTIONS]
    )
    def test_background_stays_factual(self, config, heads, name):
        if name == "seesaw":
            assert LOSSES[name](C).activation == "objectness_softmax"
        model = spread(build_heads(config(heads, LOSS, name, linear=False))).eval()
        for predictor in box_predictors(model):
            predictor.adjustments["tde"].feature_mean.uniform_(0, 1)
            x, proposals = torch.rand(7, 32), make_proposals([0] * 7)
            scores = {}
            for alpha in (0.0, 1.5):
                predictor.adjustments["tde"].alpha = alpha
                with torch.no_grad():
                    (scores[alpha],) = predictor.predict_probs(predictor(x), proposals)
            torch.testing.assert_close(scores[0.0][:, -1], scores[1.5][:, -1])
            assert not torch.allclose(scores[0.0], scores[1.5])
            torch.testing.assert_close(scores[1.5].sum(dim=1), torch.ones(7))

    def test_classes_of_their_own_exclude_tde(self, config):
        for heads in HEADS:
            for name, kind in LOSSES.items():
                cfg = config(heads, LOSS, name, linear=False)
                if kind.activation in DISTRIBUTIONS:
                    build_loss(cfg)
                    continue
                with pytest.raises(ValueError, match=f"TDE changes.*{kind.activation} scores"):
                    build_heads(cfg)
                alone = build_heads(config(heads, LOSS, name, "MODEL.TDE.ALPHA", 0.0, linear=False))
                inputs, features, proposals = head_inputs(True)
                targets = [x["instances"] for x in inputs]
                with EventStorage():
                    _, losses = alone.train()(None, features, proposals, targets)
                assert all(torch.isfinite(v) for v in losses.values())
                with pytest.raises(ValueError, match="TDE changes"):  # nor afterwards
                    box_predictors(alone)[0].check_fits(TDE)

    @pytest.mark.parametrize("name", ["eql", "gol", "ecm"])
    def test_start_at_the_prior(self, config, name):
        opts = ("MODEL.TDE.ALPHA", 0.0, "MODEL.LONG_TAIL.PRIOR_PROB", 0.02)
        for training in (True, False):
            predictor = build_heads(config(HEADS[1], LOSS, name, *opts, linear=False)).box_predictor
            predictor.train(training).cls_score.weight.data.zero_()
            x, proposals = torch.rand(7, 32), make_proposals([0] * 7)
            (scores,) = predictor.predict_probs(predictor(x), proposals)
            background = torch.sigmoid(torch.zeros(7))  # what objectness leaves for the classes
            expected = 0.02 * (1 - background if name == "ecm" else torch.ones(7))
            torch.testing.assert_close(scores[:, :-1], expected.unsqueeze(1).expand(7, C))


@pytest.mark.parametrize(
    "opts, message",
    [
        ((LOSS, "sesaw"), "LOSS must be one of cross_entropy.*'sesaw'"),
        (("MODEL.LONG_TAIL.COUNT", "pixels"), "COUNT must be.*'pixels'"),
        ((LOSS, "eql", "MODEL.LONG_TAIL.PRIOR_PROB", 1.0), "PRIOR_PROB must be in"),
        ((LOSS, "ldam", "MODEL.LONG_TAIL.LDAM.DRW_START", 1.5), "DRW_START.*got 1.5"),
        ((LOSS, "seesaw", "MODEL.LONG_TAIL.SEESAW.Q", -1.0), "MODEL.LONG_TAIL.SEESAW: q must"),
        (
            (LOSS, "sigmoid_focal", "MODEL.LONG_TAIL.SIGMOID_FOCAL.ALPHA", -0.5),
            r"alpha must be in \[0, 1\], got -0.5",
        ),
        (
            (LOSS, "federated", "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", float("nan")),
            "MODEL.ROI_BOX_HEAD.FED_LOSS: power must be in",
        ),
        (
            (LOSS, "federated", "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 0),
            "FED_LOSS: num_sampled must be",
        ),
        ((LOSS, "focal", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True), "'focal'.*USE_SIGMOID_CE"),
    ],
)
def test_bad_values(config, opts, message):
    for heads in HEADS:
        with pytest.raises(InputError, match=message):
            build_heads(config(heads, *opts))


class TestClassScales:
    @pytest.mark.parametrize("linear", [True, False])
    def test_scales_multiply_the_foreground_weights(self, config, linear):
        model = spread(build_model(config(HEADS[1], "MODEL.TDE.ALPHA", 0.0, linear=linear)))
        predictor = model.roi_heads.box_predictor.eval()
        x = torch.rand(4, 32)
        before = predictor(x)[0]
        predictor.cls_score.learn_class_scale()
        assert torch.equal(predictor(x)[0], before)
        scale = torch.rand(C)
        predictor.cls_score.class_scale.data.copy_(scale)
        bias = predictor.cls_score.bias if linear else torch.zeros(C + 1)
        expected = (before - bias) * torch.cat([scale, torch.ones(1)]) + bias
        torch.testing.assert_close(predictor(x)[0], expected)

    def test_scales_keep_the_background_under_tde(self, config):
        model = spread(build_model(config(HEADS[1], linear=False)))
        predictor = model.roi_heads.box_predictor.eval()
        predictor.cls_score.learn_class_scale()
        predictor.cls_score.class_scale.data.uniform_(0.5, 2)
        predictor.adjustments["tde"].feature_mean.uniform_(0, 1)
        x, scores = torch.rand(4, 32), []
        for alpha in (0.0, 1.5):
            predictor.adjustments["tde"].alpha = alpha
            with torch.no_grad():
                scores.append(predictor.predict_probs(predictor(x), make_proposals([0] * 4))[0])
        torch.testing.assert_close(scores[0][:, -1], scores[1][:, -1])
        assert not torch.allclose(scores[0], scores[1])

    @pytest.mark.parametrize("linear", [True, False])
    def test_a_scaled_checkpoint_loads_into_any_model(self, config, linear, tmp_path, caplog):
        model = build_model(config(HEADS[0], linear=linear))
        for predictor in box_predictors(model):
            predictor.cls_score.learn_class_scale()
            predictor.cls_score.class_scale.data.uniform_(0.5, 2)
        DetectionCheckpointer(model, str(tmp_path)).save("scaled")
        other = build_model(config(HEADS[0], linear=linear))
        DetectionCheckpointer(other).load(str(tmp_path / "scaled.pth"))
        assert "class_scale" not in caplog.text
        for one, two in zip(box_predictors(model), box_predictors(other)):
            x = torch.rand(3, 32)
            torch.testing.assert_close(one.eval()(x)[0], two.eval()(x)[0])


LIST = "MODEL.ADJUSTMENTS"


class TestAdjustments:
    """MODEL.ADJUSTMENTS."""

    def predictor(self, config, steps, *opts, linear=False):
        return build_heads(config(HEADS[1], LIST, steps, *opts, linear=linear)).box_predictor

    def test_none(self, config):
        predictor = self.predictor(config, [], "MODEL.TDE.ALPHA", 0.5)
        assert list(predictor.adjustments) == ["tde"] and predictor.adjustments["tde"].alpha == 0.5
        assert not self.predictor(config, [], linear=True).adjustments

    def test_in_their_order_with_their_options(self, config, monkeypatch):
        points = torch.zeros(5, dtype=torch.long), torch.rand(5, 2).double()
        monkeypatch.setattr("tde_det.modeling.build.box_centers", lambda *args: points)
        steps = ["norcal gamma=0.3 count_instances=true", "fracal exempt=false"]
        tde = ("MODEL.TDE.ALPHA", 0.5, "MODEL.TDE.BACKGROUND_EXEMPT", False)
        chain = self.predictor(config, steps, *tde).adjustments
        assert list(chain) == ["tde", "norcal", "fracal"]
        assert chain["tde"].alpha == 0.5 and chain["tde"].exempt is False
        assert (chain["norcal"].gamma, chain["norcal"].count_instances) == (0.3, True)
        assert chain["norcal"].instances.tolist() == [5, 3, 1, 1, 0]
        assert chain["norcal"].images.tolist() == [3, 2, 1, 1, 0]
        assert not chain["fracal"].exempt
        chain = self.predictor(config, ["logit_adjustment + norcal"], linear=True).adjustments
        assert list(chain) == ["logit_adjustment", "norcal"]
        chain = self.predictor(config, ["fracal"], LOSS, "eql", linear=True).adjustments
        assert list(chain) == ["fracal"]

    @pytest.mark.parametrize(
        "steps, linear, message",
        [
            (["platt"], False, "^MODEL.ADJUSTMENTS: 'platt' is no adjustment"),
            (["norcal gama=1"], False, "^MODEL.ADJUSTMENTS: .*'gama=1'"),
            (["norcal", "norcal gamma=1"], False, "^MODEL.ADJUSTMENTS: .*more than once"),
            (["norcal gamma=0.1,0.2"], False, "^MODEL.ADJUSTMENTS: .*has several values"),
            (["tde"], False, "^MODEL.ADJUSTMENTS: tde comes first"),
            (["ncm temperature=0"], False, "^MODEL.ADJUSTMENTS: .*must be positive"),
            (["norcal gamma=-1"], False, "MODEL.ADJUSTMENTS: .*gamma must be"),
            (["tau_norm"], False, "MODEL.ADJUSTMENTS: TauNorm divides"),
        ],
    )
    def test_errors(self, config, steps, linear, message):
        with pytest.raises(InputError, match=message):
            self.predictor(config, steps, linear=linear)

    def test_what_a_checkpoint_carries_gives_way_to_a_list(self, config, tmp_path):
        """Statistics of what is listed stay the checkpoint's."""
        saved = build_model(config(HEADS[0], LIST, ["norcal gamma=0.9", "logit_adjustment"]))
        for predictor in box_predictors(saved):
            predictor.adjustments["norcal"].images.fill_(7)
        DetectionCheckpointer(saved, str(tmp_path)).save("model")
        carried = {"norcal": 0.9, "logit_adjustment": None}
        for steps, expected in (
            (["norcal gamma=0.3"], {"norcal": 0.3}),
            (["none"], {}),
            ([], carried),
        ):
            model = build_model(config(HEADS[0], LIST, steps))
            checkpointer = DetectionCheckpointer(model)
            problems = []
            checkpointer._log_incompatible_keys = problems.append
            checkpointer.load(str(tmp_path / "model.pth"))
            assert not any(any(kinds) for kinds in problems)
            for predictor in box_predictors(model):
                made = predictor.adjustments
                assert {name: getattr(a, "gamma", None) for name, a in made.items()} == expected
                if "norcal" in made:
                    assert made["norcal"].images.tolist() == [7] * C
