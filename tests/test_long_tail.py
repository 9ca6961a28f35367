"""The losses and decoupled training inside Detectron2's models."""

import contextlib

import pytest
import torch
from conftest import scripted
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from test_box_predictor import TINY, make_inputs, make_proposals

from tde_det.build_loss import build_loss
from tde_det.data.class_counts import class_counts
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import read_config
from tde_det.engine.checkpoints import ExactCheckpointer, FittingCheckpointer, FrozenCheckpointer
from tde_det.engine.decoupling import freeze_all_but_classifier, predictors_of
from tde_det.errors import InputError
from tde_det.inference.settings import Setting, predictor_with
from tde_det.losses import DISTRIBUTIONS, LOSSES

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


def randomise(model):
    """Weights large enough for scores that differ."""
    torch.manual_seed(1)
    for predictor in predictors_of(model):
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
    return model


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


class TestClassCounts:
    def test_objects_images_and_crowds(self, toy):
        counts = class_counts([toy], C)
        assert counts.instances.tolist() == [5, 3, 1, 1, 0]
        assert counts.images.tolist() == [3, 2, 1, 1, 0]
        assert counts.num_images == 5
        assert class_counts([toy, toy], C).instances.tolist() == [10, 6, 2, 2, 0]

    def test_a_json_equals_its_records(self, tmp_path):
        build_mini_lvis(str(tmp_path), Settings(8, 64, train_images=12, val_images=2, seed=3))
        from tde_det.data import register_lvis_json

        register_lvis_json("counted", str(tmp_path / "mini_lvis_train.json"), str(tmp_path))
        try:
            counts = class_counts(["counted"], 8)
            records = DatasetCatalog.get("counted")
        finally:
            DatasetCatalog.remove("counted")
            MetadataCatalog.remove("counted")
        for c in range(8):
            own = [[a["category_id"] for a in r["annotations"]].count(c) for r in records]
            assert counts.instances[c] == sum(own)
            assert counts.images[c] == sum(n > 0 for n in own)

    def test_errors(self, toy):
        with pytest.raises(InputError, match="class 3.*NUM_CLASSES is 3"):
            class_counts([toy], 3)
        with pytest.raises(InputError, match="'nowhere'"):
            class_counts(["nowhere"], C)
        DatasetCatalog.register("hollow", lambda: [{}])
        with pytest.raises(InputError, match="hollow has no objects"):
            class_counts(["hollow"], C)
        DatasetCatalog.remove("hollow")

    def test_count_of_images(self, config):
        by_image = config(
            HEADS[0], LOSS, "weighted_cross_entropy", "MODEL.LONG_TAIL.COUNT", "images"
        )
        assert build_loss(by_image).counts.tolist() == [3, 2, 1, 1, 1]
        assert build_loss(config(HEADS[0], LOSS, "ldam")).counts.tolist() == [5, 3, 1, 1, 1]


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
        for predictor in predictors_of(heads):
            assert torch.isfinite(predictor.cls_score.weight.grad).all()
            assert predictor.cls_score.weight.grad.any()
        heads.eval()
        with torch.no_grad(), context:
            outputs, _ = heads(None, features, proposals)
        scores = torch.cat([x.scores for x in outputs])
        assert len(scores) and ((scores >= 0) & (scores <= 1)).all()

    @pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("cross_entropy", "federated")])
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

    def test_federated_is_detectron2s_own(self, config, log):
        cfg = config(HEADS[1], LOSS, "federated")
        predictor = build_heads(cfg).box_predictor.train()
        assert predictor.use_fed_loss and predictor.classification_loss is None
        weights = torch.tensor([3.0, 2, 1, 1, 0]) ** 0.5
        torch.testing.assert_close(predictor.fed_loss_cls_weights, weights)
        many = ("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 5)
        predictor = build_heads(config(HEADS[1], LOSS, "federated", *many)).box_predictor
        assert predictor.fed_loss_num_classes == 4 and "objects of 4 classes" in log.text
        with EventStorage():  # Detectron2 can draw them
            predictor.train().losses(predictor(torch.rand(1, 32)), make_proposals([4]))

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
            with EventStorage():
                model(make_inputs())
            DetectionCheckpointer(model, str(tmp_path)).save(name)
            other = build_model(config(HEADS[0], LOSS, name))
            DetectionCheckpointer(other).load(str(tmp_path / f"{name}.pth"))
            for one, two in zip(predictors_of(model), predictors_of(other)):
                state = one.classification_loss.state_dict()
                assert state and all(v.any() for v in state.values())
                for key, value in state.items():
                    assert torch.equal(two.classification_loss.state_dict()[key], value)

    def test_inference_needs_no_training_set(self, config):
        for name in ("ldam", "federated", "ecm"):
            cfg = config(HEADS[1], LOSS, name, "DATASETS.TRAIN", ("not_there",))
            model = build_model(cfg).eval()
            with torch.no_grad():
                model(make_inputs(1, with_objects=False))
        loss = build_loss(config(HEADS[1], LOSS, "ldam", "DATASETS.TRAIN", ("not_there",)))
        with pytest.raises(InputError, match="not_there"):
            loss(torch.zeros(1, C + 1), torch.zeros(1, dtype=torch.long))

    @pytest.mark.parametrize("name", ["seesaw", "eqlv2"])
    def test_scripting(self, config, name):
        model = build_model(config(HEADS[1], LOSS, name, "MODEL.MASK_ON", False)).eval()
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
        model = randomise(build_heads(config(heads, LOSS, name, linear=False))).eval()
        for predictor in predictors_of(model):
            predictor.cls_score.feature_mean.uniform_(0, 1)
            predictor.cls_score.class_scale = None
            x, proposals = torch.rand(7, 32), make_proposals([0] * 7)
            scores = {}
            for alpha in (0.0, 1.5):
                predictor.cls_score.alpha = alpha
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
                with pytest.raises(ValueError, match=f"TDE compares.*{name}.*ALPHA 0"):
                    build_heads(cfg)
                alone = build_heads(config(heads, LOSS, name, "MODEL.TDE.ALPHA", 0.0, linear=False))
                inputs, features, proposals = head_inputs(True)
                targets = [x["instances"] for x in inputs]
                with EventStorage():
                    _, losses = alone.train()(None, features, proposals, targets)
                assert all(torch.isfinite(v) for v in losses.values())
                with pytest.raises(InputError, match="TDE compares"):  # nor afterwards
                    predictor_with(alone.box_predictor, Setting("alpha", 1.5), None)

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


class TestTheLossOfACheckpoint:
    """Scores of one kind must not be read as those of another."""

    def saved(self, config, tmp_path, name, linear=True):
        cfg = config(HEADS[0], LOSS, name, "MODEL.TDE.ALPHA", 0.0, linear=linear)
        DetectionCheckpointer(randomise(build_model(cfg)), str(tmp_path)).save(name)
        return str(tmp_path / f"{name}.pth")

    def load(self, config, path, name, kind=FittingCheckpointer, linear=True):
        model = build_model(config(HEADS[0], LOSS, name, "MODEL.TDE.ALPHA", 0.0, linear=linear))
        kind(model).load(path)
        return model

    @pytest.mark.parametrize("kind", [FittingCheckpointer, ExactCheckpointer])
    @pytest.mark.parametrize("linear", [True, False])
    def test_is_checked(self, config, tmp_path, kind, linear):
        path = self.saved(config, tmp_path, "gol", linear)
        for other in ("cross_entropy", "seesaw"):
            with pytest.raises(InputError, match="trained for gumbel scores, this config makes"):
                self.load(config, path, other, kind, linear)
        self.load(config, path, "gol", kind, linear)

    def test_may_change_in_training(self, config, tmp_path):
        path = self.saved(config, tmp_path, "gol")
        for other in ("cross_entropy", "ecm"):
            model = self.load(config, path, other, DetectionCheckpointer)
            for predictor in predictors_of(model):
                assert predictor.loaded_activation == "gumbel"
            DetectionCheckpointer(model, str(tmp_path)).save("other")
            self.load(config, str(tmp_path / "other.pth"), other)

    def test_marks_that_stock_heads_would_ignore(self, config, tmp_path):
        stock = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
        for name, linear in (("gol", True), ("cross_entropy", False)):
            path = self.saved(config, tmp_path, name, linear)
            model = build_model(config(HEADS[0], *stock))
            with pytest.raises(InputError, match="unknown roi_heads.box_predictor.0"):
                FittingCheckpointer(model).load(path)
        FittingCheckpointer(model).load(self.saved(config, tmp_path, "cross_entropy"))

    def test_linear_biases_are_not_dropped_silently(self, config, tmp_path):
        path = self.saved(config, tmp_path, "cross_entropy")
        self.load(config, path, "cross_entropy", linear=False)
        with pytest.raises(InputError, match="unknown roi_heads.box_predictor.0.cls_score.bias"):
            self.load(config, path, "cross_entropy", ExactCheckpointer, linear=False)


@pytest.mark.parametrize(
    "opts, message",
    [
        ((LOSS, "sesaw"), "LOSS must be one of cross_entropy.*'sesaw'"),
        (("MODEL.LONG_TAIL.COUNT", "pixels"), "COUNT must be.*'pixels'"),
        ((LOSS, "eql", "MODEL.LONG_TAIL.PRIOR_PROB", 1.0), "PRIOR_PROB must be in"),
        ((LOSS, "ldam", "MODEL.LONG_TAIL.LDAM.DRW_START", 1.5), "DRW_START.*got 1.5"),
        ((LOSS, "seesaw", "MODEL.LONG_TAIL.SEESAW.Q", -1.0), "LONG_TAIL.SEESAW: seesaw: q must"),
        (
            (LOSS, "sigmoid_focal", "MODEL.LONG_TAIL.SIGMOID_FOCAL.ALPHA", -0.5),
            r"alpha must be in \[0, 1\], got -0.5",
        ),
        (
            (LOSS, "federated", "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", float("nan")),
            "FED_LOSS_FREQ_WEIGHT_POWER must be in",
        ),
        ((LOSS, "federated", "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 0), "NUM_CLASSES must be"),
        ((LOSS, "focal", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True), "'focal'.*USE_SIGMOID_CE"),
    ],
)
def test_bad_values(config, opts, message):
    for heads in HEADS:
        with pytest.raises(InputError, match=message):
            build_heads(config(heads, *opts))


class TestDecoupling:
    @pytest.mark.parametrize("linear", [True, False])
    @pytest.mark.parametrize("method", ["crt", "lws"])
    def test_only_the_classifier_has_gradients(self, config, method, linear):
        model = randomise(build_model(config(HEADS[0], linear=linear)))
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
            assert not predictors_of(model)[0].cls_score.feature_mean.any()

    @pytest.mark.parametrize("linear", [True, False])
    def test_scales_multiply_the_foreground_weights(self, config, linear):
        model = randomise(build_model(config(HEADS[1], "MODEL.TDE.ALPHA", 0.0, linear=linear)))
        predictor = model.roi_heads.box_predictor.eval()
        x = torch.rand(4, 32)
        before, _ = predictor(x)
        predictor.learn_class_scale()
        assert torch.equal(predictor(x)[0], before)
        scale = torch.rand(C)
        predictor.cls_score.class_scale.data.copy_(scale)
        bias = predictor.cls_score.bias if linear else torch.zeros(C + 1)
        expected = (before - bias) * torch.cat([scale, torch.ones(1)]) + bias
        torch.testing.assert_close(predictor(x)[0], expected)

    def test_scales_keep_the_background_under_tde(self, config):
        model = randomise(build_model(config(HEADS[1], linear=False)))
        predictor = model.roi_heads.box_predictor.eval()
        predictor.learn_class_scale()
        predictor.cls_score.class_scale.data.uniform_(0.5, 2)
        predictor.cls_score.feature_mean.uniform_(0, 1)
        x, scores = torch.rand(4, 32), []
        for alpha in (0.0, 1.5):
            predictor.cls_score.alpha = alpha
            with torch.no_grad():
                scores.append(predictor.predict_probs(predictor(x), make_proposals([0] * 4))[0])
        torch.testing.assert_close(scores[0][:, -1], scores[1][:, -1])
        assert not torch.allclose(scores[0], scores[1])

    @pytest.mark.parametrize("linear", [True, False])
    def test_a_scaled_checkpoint_loads_into_any_model(self, config, linear, tmp_path, caplog):
        model = build_model(config(HEADS[0], linear=linear))
        freeze_all_but_classifier(model, "lws")
        for predictor in predictors_of(model):
            predictor.cls_score.class_scale.data.uniform_(0.5, 2)
        DetectionCheckpointer(model, str(tmp_path)).save("scaled")
        other = build_model(config(HEADS[0], linear=linear))
        DetectionCheckpointer(other).load(str(tmp_path / "scaled.pth"))
        assert "class_scale" not in caplog.text
        for one, two in zip(predictors_of(model), predictors_of(other)):
            x = torch.rand(3, 32)
            torch.testing.assert_close(one.eval()(x)[0], two.eval()(x)[0])


class TestWhatIsFrozen:
    @pytest.fixture
    def started(self, config, tmp_path):
        """Load a checkpoint of some model to train another's classifier."""

        def start(method, saved, wanted):
            DetectionCheckpointer(build_model(saved), str(tmp_path)).save("x")
            FrozenCheckpointer(build_model(wanted), method).load(str(tmp_path / "x.pth"))

        return start

    def test_fits(self, config, started):
        for linear in (True, False):
            cfg = config(HEADS[0], linear=linear)
            started("lws", cfg, cfg)
            started("crt", cfg, config(HEADS[0], LOSS, "seesaw"))

    @pytest.mark.parametrize("method", ["crt", "lws"])
    def test_does_not_fit(self, config, started, method):
        cascade, standard = config(HEADS[0]), config(HEADS[1])
        for saved, wanted in ((cascade, standard), (standard, cascade)):
            with pytest.raises(InputError, match="(no fitting|unknown) roi_heads.box_"):
                started(method, saved, wanted)
        with pytest.raises(InputError, match="has no fitting roi_heads.mask_head"):
            started(method, config(HEADS[0], "MODEL.MASK_ON", False), cascade)

    def test_lws_keeps_the_classifier(self, config, started):
        linear, normalised = config(HEADS[0]), config(HEADS[0], linear=False)
        for saved, wanted, message in (
            (linear, normalised, "unknown roi_heads.box_predictor.0.cls_score.bias"),
            (normalised, linear, "no fitting roi_heads.box_predictor.0.cls_score.bias"),
            (config(HEADS[0], LOSS, "gol"), linear, "trained for gumbel scores"),
            (config(HEADS[0], LOSS, "federated"), linear, "trained for sigmoid scores"),
        ):
            started("crt", saved, wanted)
            with pytest.raises(InputError, match=message):
                started("lws", saved, wanted)


def test_read_config_knows_the_keys():
    args = default_argument_parser().parse_args([LOSS, "seesaw", "MODEL.LONG_TAIL.SEESAW.P", "1"])
    assert read_config(args).MODEL.LONG_TAIL.SEESAW.P == 1.0
