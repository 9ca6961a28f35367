"""The box predictor inside Detectron2's heads: training, inference, export, checkpoints, errors."""

import copy
import itertools

import pytest
import torch
from conftest import scripted
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.export import TracingAdapter
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import FakeTensorMode

from tde_det import TDEOutputLayers
from tde_det.adjustments import FRACAL, NCM, TDE, LogitAdjustment, NorCal, TauNorm
from tde_det.class_counts import ClassCounts
from tde_det.classifiers import CausalNormClassifier, LinearClassifier
from tde_det.errors import InputError
from tde_det.losses.federated import Federated
from tde_det.losses.focal import SigmoidFocal
from tde_det.losses.ldam import LDAM
from tde_det.modeling import box_predictors

DIM, CLASSES = 16, 5
TINY = (
    *("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
)
LINEAR = ("MODEL.TDE.CLASSIFIER", "linear")
ALL = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
HEADS = pytest.mark.parametrize("heads", ["TDECascadeROIHeads", "TDEStandardROIHeads"])
COUNTS = torch.tensor([500, 20, 3, 0, 1])


def make_tde(dim=DIM, **options):
    tde = TDE(dim, **options)
    tde.feature_mean.uniform_(0, 1)
    return tde


def make_predictor(linear=False, dim=DIM, weights=(10, 10, 5, 5), **kwargs):
    """By plain arguments, normalised and with TDE unless others are given."""
    parts = {} if linear else {"classifier": {}, "adjustments": {"tde": make_tde(dim)}}
    stock = {
        "box2box_transform": Box2BoxTransform(weights),
        "num_classes": CLASSES,
        "cls_agnostic_bbox_reg": True,
    }
    return TDEOutputLayers(ShapeSpec(channels=dim), **{**stock, **parts, **kwargs})


def make_proposals(labels):
    proposals = Instances((64, 64))
    boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0]]).repeat(len(labels), 1)
    proposals.proposal_boxes = Boxes(boxes)
    proposals.gt_boxes = Boxes(boxes + 1)
    proposals.gt_classes = torch.tensor(labels, dtype=torch.long)
    return [proposals]


def make_inputs(num_images=2, size=64, with_objects=True):
    inputs = []
    for _ in range(num_images):
        target = Instances((size, size))
        count = 3 if with_objects else 0
        boxes = torch.tensor([[4, 4, 30, 30], [20, 20, 60, 50], [2, 30, 20, 60]])[:count].float()
        target.gt_boxes = Boxes(boxes.reshape(-1, 4))
        target.gt_classes = torch.arange(count)
        target.gt_masks = BitMasks(torch.ones(count, size, size, dtype=torch.bool))
        image = torch.rand(3, size, size) * 255
        inputs.append({"image": image, "instances": target, "height": size, "width": size})
    return inputs


def tiny_model(load_config, heads="TDECascadeROIHeads", *opts):
    torch.manual_seed(0)
    name = "lvis_cascade_tde.yaml" if "Cascade" in heads else "lvis_mask_rcnn_tde.yaml"
    model = build_model(load_config(name, *TINY, *opts))
    for predictor in box_predictors(model):
        if "tde" in predictor.adjustments:
            predictor.adjustments["tde"].feature_mean.uniform_(0, 1)
    return model


def spread(model):
    """Weights large enough for scores that differ."""
    torch.manual_seed(4)
    for predictor in box_predictors(model):
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
    return model


def feature_means(model):
    return [p.adjustments["tde"].feature_mean.clone() for p in box_predictors(model)]


def image_of(inputs):
    return [{"image": inputs[0]["image"]}]


def assert_same(actual, expected):
    assert len(actual) == len(expected) > 0
    assert torch.equal(actual.scores, expected.scores)
    assert torch.equal(actual.pred_classes, expected.pred_classes)
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


def adjustments(linear):
    """Every kind that goes with a classifier."""
    chosen = {
        "norcal": NorCal(COUNTS, COUNTS),
        "logit_adjustment": LogitAdjustment(COUNTS),
        "fracal": FRACAL(COUNTS, torch.linspace(1, 2, CLASSES)),
    }
    first = TauNorm() if linear else make_tde()
    ncm = NCM(torch.rand(DIM), torch.randn(CLASSES, DIM))
    return {"tau_norm" if linear else "tde": first, "ncm": ncm, **chosen}


class TestTraining:
    def test_mean_takes_foreground_only_class_0_included(self):
        predictor = make_predictor(adjustments={"tde": TDE(DIM)}).train()
        x = torch.rand(5, DIM)
        with EventStorage():
            labels = [0, CLASSES, 4, CLASSES, CLASSES]
            predictor.losses(predictor(x), make_proposals(labels))
        mean = predictor.adjustments["tde"].feature_mean
        torch.testing.assert_close(mean, (x[0] + x[2]) / 2)

    def test_mean_of_many_dimensional_features(self):
        predictor = make_predictor(adjustments={"tde": TDE(DIM)}).train()
        x = torch.rand(2, 4, 2, 2)
        with EventStorage():
            predictor.losses(predictor(x), make_proposals([0, CLASSES]))
        assert torch.equal(predictor.adjustments["tde"].feature_mean, x[0].flatten())

    @pytest.mark.parametrize("linear", [True, False])
    def test_losses_are_detectron2s(self, linear):
        predictor = make_predictor(linear, loss_weight={"loss_cls": 2.0, "loss_box_reg": 3.0})
        proposals = make_proposals([0, 1, CLASSES, 2])
        with EventStorage():
            predictions = predictor.train()(torch.rand(4, DIM))
            losses = predictor.losses(predictions, proposals)
            expected = FastRCNNOutputLayers.losses(predictor, predictions[:2], proposals)
        assert losses == expected and set(losses) == {"loss_cls", "loss_box_reg"}
        sum(losses.values()).backward()
        assert torch.isfinite(predictor.cls_score.weight.grad).all()

    def test_a_loss_takes_the_place_of_detectron2s(self):
        loss = SigmoidFocal(CLASSES)
        predictor = make_predictor(True, classification_loss=loss, loss_weight={"loss_cls": 2.0})
        labels, x = [0, 1, CLASSES, 2], torch.rand(4, DIM)
        with EventStorage():
            predictions = predictor(x)
            losses = predictor.losses(predictions, make_proposals(labels))
            stock = FastRCNNOutputLayers.losses(predictor, predictions[:2], make_proposals(labels))
        assert losses["loss_cls"] == 2 * loss(predictions[0], torch.tensor(labels))
        assert losses["loss_box_reg"] == stock["loss_box_reg"]

    @pytest.mark.parametrize("num_sampled", [2, 3, 5])
    def test_federated_loss_is_detectron2s_own(self, num_sampled):
        counts = ClassCounts(COUNTS, torch.tensor([9, 5, 4, 3, 1]), 10)
        stock = FastRCNNOutputLayers(
            ShapeSpec(channels=DIM),
            box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
            num_classes=CLASSES,
            cls_agnostic_bbox_reg=True,
            use_sigmoid_ce=True,
            use_fed_loss=True,
            fed_loss_num_classes=num_sampled,
            get_fed_loss_cls_weights=lambda: counts.images.float() ** 0.5,
        )
        loss = Federated(CLASSES, counts=counts, num_sampled=num_sampled)
        ours = make_predictor(True, classification_loss=loss)
        ours.load_state_dict(stock.state_dict(), strict=False)  # the weights are the loss's
        x, results = torch.rand(6, DIM), []
        for seed, predictor in itertools.product(range(5), (stock, ours)):
            torch.manual_seed(seed)
            with EventStorage():
                results.append(
                    predictor.losses(predictor(x), make_proposals([0, 3, CLASSES, 3, 5, 5]))
                )
        for expected, actual in zip(results[::2], results[1::2]):
            for key, value in expected.items():
                torch.testing.assert_close(actual[key], value)

    def test_batch_without_foreground_and_empty_batch(self):
        predictor = make_predictor().train()
        before = predictor.adjustments["tde"].feature_mean.clone()
        with EventStorage():
            predictor.losses(predictor(torch.rand(2, DIM)), make_proposals([CLASSES] * 2))
            predictor.losses(predictor(torch.rand(0, DIM)), make_proposals([]))
            losses = predictor.losses(predictor(torch.rand(0, DIM)), [])
        assert all(v == 0 for v in losses.values())
        assert torch.equal(predictor.adjustments["tde"].feature_mean, before)

    @HEADS
    def test_whole_model_trains_also_without_objects(self, load_config, heads):
        model = tiny_model(load_config, heads).train()
        before = feature_means(model)
        with EventStorage():
            losses = model(make_inputs())
            sum(losses.values()).backward()
            assert all(torch.isfinite(v) for v in losses.values())
            after = feature_means(model)
            assert all(not torch.equal(a, b) for a, b in zip(before, after))
            model(make_inputs(with_objects=False))
        assert all(torch.equal(a, b) for a, b in zip(feature_means(model), after))

    def test_autocast(self, load_config):
        model = tiny_model(load_config).train()
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(make_inputs())
        sum(losses.values()).backward()
        for predictor in model.roi_heads.box_predictor:
            assert predictor.adjustments["tde"].feature_mean.dtype == torch.float32
            assert torch.isfinite(predictor.cls_score.weight.grad).all()


def cascade(load_config, *opts):
    """Our cascade, and Detectron2's own code around the same predictors."""
    many = ("MODEL.RPN.POST_NMS_TOPK_TEST", 50)
    ours = spread(tiny_model(load_config, "TDECascadeROIHeads", *many, *opts)).eval()
    stock = copy.deepcopy(ours)
    stock.roi_heads.__class__ = CascadeROIHeads
    return ours, stock


class TestInference:
    @pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.3])
    @pytest.mark.parametrize("opts", [(), LINEAR])
    def test_cascade_detects_as_detectron2s_own_code(self, load_config, opts, threshold):
        opts = (*opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold)
        ours, stock = cascade(load_config, *opts)
        inputs = make_inputs()
        inputs[1].update(height=100, width=90)
        with torch.no_grad():
            for expected, actual in zip(stock(inputs), ours(inputs)):
                assert_same(actual["instances"], expected["instances"])
                assert torch.equal(actual["instances"].pred_masks, expected["instances"].pred_masks)

    @pytest.mark.parametrize("heads", ["CascadeROIHeads", "StandardROIHeads"])
    def test_linear_detects_as_detectron2s_own_model(self, load_config, heads):
        settings = (*LINEAR, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4)
        many = ("MODEL.ROI_HEADS.NUM_CLASSES", 80, "MODEL.RPN.POST_NMS_TOPK_TEST", 100)
        ours = tiny_model(load_config, f"TDE{heads}", *settings, *many).eval()
        name = ("MODEL.ROI_HEADS.NAME", heads)
        stock = tiny_model(load_config, f"TDE{heads}", *settings, *many, *name).eval()
        stock.load_state_dict(ours.state_dict())
        assert type(stock.roi_heads).__module__.startswith("detectron2.")
        assert not box_predictors(stock)
        inputs = make_inputs()
        with torch.no_grad():
            for expected, actual in zip(stock(inputs), ours(inputs)):
                assert_same(actual["instances"], expected["instances"])
                assert len(actual["instances"]) == 300

    def test_cascade_scores_are_the_mean_of_one_softmax_per_stage(self, load_config):
        """Against the formula: adjusted logits of each stage, one softmax, and their mean."""
        heads = tiny_model(load_config, "TDECascadeROIHeads", *ALL).eval().roi_heads
        recorded = []
        for predictor in heads.box_predictor:
            predictor.test_nms_thresh = 1.0
            predictor.register_forward_hook(lambda m, args, out: recorded.append((m, *out)))
        features = {f"p{k}": torch.rand(1, 16, 128 >> k, 128 >> k) for k in range(2, 6)}
        proposals = Instances((128, 128))
        proposals.proposal_boxes = Boxes(torch.tensor([[5.0, 5.0, 60.0, 90.0]]))
        heads.mask_on = False
        with torch.no_grad():
            (result,), _ = heads(None, features, [proposals])
        assert len(recorded) == 3
        expected = torch.zeros(CLASSES)
        for predictor, logits, _, x in recorded:
            assert torch.equal(predictor.cls_score(x), logits)
            weight = predictor.cls_score.class_weight()
            scores = predictor.adjustments(x, logits, weight).softmax(1)
            torch.testing.assert_close(scores[:, -1], logits.softmax(1)[:, -1])
            assert not torch.allclose(scores, logits.softmax(1))
            expected += scores[0, :-1] / 3
        actual = torch.zeros(CLASSES)
        actual[result.pred_classes] = result.scores
        torch.testing.assert_close(actual, expected)

    def test_adjustments_change_inference_only(self, load_config):
        tde, factual = (
            tiny_model(load_config, "TDECascadeROIHeads", "MODEL.TDE.ALPHA", alpha, *ALL)
            for alpha in (1.5, 0.0)
        )
        factual.load_state_dict(tde.state_dict())
        inputs, losses = make_inputs(1), []
        for model in (tde, factual):
            torch.manual_seed(1)
            with EventStorage():
                losses.append(model.train()(inputs))
        assert losses[0] == losses[1]
        factual.load_state_dict(tde.state_dict())
        with torch.no_grad():
            a, b = (model.eval()(inputs)[0]["instances"] for model in (tde, factual))
        assert not torch.equal(a.scores, b.scores)

    @pytest.mark.parametrize("linear", [True, False])
    def test_every_adjustment_changes_the_scores(self, linear):
        x, proposals = torch.rand(3, DIM), make_proposals([0, 1, 2])
        plain = make_predictor(linear, adjustments={}).eval()
        torch.nn.init.normal_(plain.cls_score.weight)
        (expected,) = plain.predict_probs(plain(x), proposals)
        assert torch.equal(expected, plain(x)[0].softmax(1))
        for name, adjustment in adjustments(linear).items():
            predictor = make_predictor(linear, adjustments={name: adjustment}).eval()
            predictor.load_state_dict(
                {**predictor.state_dict(), **{k: v for k, v in plain.state_dict().items()}}
            )
            (scores,) = predictor.predict_probs(predictor(x), proposals)
            assert torch.equal(predictor(x)[0], plain(x)[0])
            torch.testing.assert_close(scores[:, -1], expected[:, -1])
            assert (scores - expected).abs().max() > 1e-3

    def test_learned_class_scales_count(self):
        """LWS: τ-normalisation takes the norm of the scaled weight."""
        predictor = make_predictor(True, adjustments={"tau_norm": TauNorm(tau=1.0)}).eval()
        classifier, x = predictor.cls_score, torch.randn(9, DIM)
        torch.nn.init.normal_(classifier.weight)
        classifier.learn_class_scale()
        classifier.class_scale.data.uniform_(0.5, 2)
        p_bg = classifier(x).softmax(1)[:, -1:]
        weight = classifier.weight[:-1] * classifier.class_scale.unsqueeze(1)
        t = x @ (weight / weight.norm(dim=1, keepdim=True)).t()
        expected = torch.cat([t.softmax(1) * (1 - p_bg), p_bg], dim=1)
        (scores,) = predictor.predict_probs(predictor(x), make_proposals([0] * 9))
        torch.testing.assert_close(scores, expected)

    def test_images_keep_their_boxes(self):
        predictor = make_predictor().eval()
        proposals = make_proposals([0, 1, 2]) + make_proposals([]) + make_proposals([1])
        with torch.no_grad():
            predictions = predictor(torch.randn(4, DIM))
            scores = predictor.predict_probs(predictions, proposals)
            boxes = predictor.predict_boxes(predictions, proposals)
        assert [len(s) for s in scores] == [len(b) for b in boxes] == [3, 0, 1]
        one = predictor.predict_probs([p[3:] for p in predictions], proposals[2:])
        torch.testing.assert_close(one[0], scores[2])

    def test_detectron2s_test_time_augmentation(self, load_config):
        opts = ("TEST.AUG.MIN_SIZES", (48, 64), *ALL)
        model = tiny_model(load_config, "TDECascadeROIHeads", *opts).eval()
        cfg = load_config("lvis_cascade_tde.yaml", *TINY, *opts)
        image = {**image_of(make_inputs(1))[0], "height": 64, "width": 64}
        with torch.no_grad():
            (output,) = GeneralizedRCNNWithTTA(cfg, model)([image])
        assert len(output["instances"]) and torch.isfinite(output["instances"].scores).all()

    def test_empty_proposals(self):
        predictor = make_predictor().eval()
        predictions = predictor(torch.rand(0, DIM))
        assert [len(p) for p in predictions] == [0, 0, 0]
        assert predictions[0].shape == (0, CLASSES + 1)
        results, _ = predictor.inference(predictions, make_proposals([]))
        assert len(results[0]) == 0
        assert predictor.inference(predictor(torch.rand(0, DIM)), []) == ([], [])


def roi_head_parts():
    return {
        "num_classes": CLASSES,
        "batch_size_per_image": 32,
        "positive_fraction": 0.25,
        "box_in_features": ["p2"],
        "box_pooler": ROIPooler(2, [0.25], 0, "ROIAlignV2"),
    }


def box_head():
    return FastRCNNConvFCHead(ShapeSpec(channels=8, height=2, width=2), conv_dims=[], fc_dims=[DIM])


class TestPlainArguments:
    """The predictor as a part of Detectron2's own heads, built without a config."""

    def heads(self, is_cascade, **kwargs):
        torch.manual_seed(0)
        matchers = [Matcher([t], [0, 1]) for t in (0.5, 0.6)]
        if not is_cascade:
            predictor = make_predictor(test_score_thresh=0.0, **kwargs)
            return StandardROIHeads(
                **roi_head_parts(),
                proposal_matcher=matchers[0],
                box_head=box_head(),
                box_predictor=predictor,
            )
        return CascadeROIHeads(
            **roi_head_parts(),
            proposal_matchers=matchers,
            box_heads=[box_head(), box_head()],
            box_predictors=[
                make_predictor(weights=weights, test_score_thresh=0.0, **kwargs)
                for weights in ((10, 10, 5, 5), (20, 20, 10, 10))
            ],
        )

    @pytest.mark.parametrize("is_cascade", [True, False])
    @pytest.mark.parametrize("linear", [True, False])
    def test_trains_and_infers(self, is_cascade, linear):
        heads = self.heads(is_cascade, linear=linear)
        assert len(box_predictors(heads)) == 1 + is_cascade
        targets = [x["instances"] for x in make_inputs()]
        features = {"p2": torch.rand(2, 8, 16, 16)}
        proposals = []
        for target in targets:
            target.remove("gt_masks")
            proposals.append(Instances((64, 64)))
            proposals[-1].proposal_boxes = Boxes(target.gt_boxes.tensor + 1)
            proposals[-1].objectness_logits = torch.zeros(3)
        before = [] if linear else feature_means(heads)
        with EventStorage():
            _, losses = heads.train()(None, features, proposals, targets)
        sum(losses.values()).backward()
        assert all(torch.isfinite(v) for v in losses.values())
        after = [] if linear else feature_means(heads)
        assert all(not torch.equal(a, b) for a, b in zip(before, after))
        with torch.no_grad():
            outputs, _ = heads.eval()(None, features, proposals)
        assert len(outputs) == 2 and all(len(x) for x in outputs)

    def test_train_on_predicted_boxes(self):
        heads = self.heads(False).train()
        heads.train_on_pred_boxes = True
        proposals = make_proposals([0, 1, CLASSES])
        with EventStorage():
            heads._forward_box({"p2": torch.rand(1, 8, 16, 16)}, proposals)
        moved = proposals[0].proposal_boxes.tensor
        assert moved.shape == (3, 4) and not moved.requires_grad

    def test_defaults_are_detectron2s(self):
        stock = FastRCNNOutputLayers(
            ShapeSpec(channels=DIM), box2box_transform=Box2BoxTransform((1,) * 4), num_classes=5
        )
        ours = make_predictor(True, cls_agnostic_bbox_reg=False)
        ours.load_state_dict(stock.state_dict())  # every key fits
        x = torch.rand(3, DIM)
        for expected, actual in zip(stock(x), ours(x)):
            assert torch.equal(actual, expected)
        assert not ours.adjustments and type(ours.cls_score) is LinearClassifier


class TestStructure:
    def test_state_and_box_transforms(self, load_config):
        model = tiny_model(load_config)
        assert isinstance(model.roi_heads, CascadeROIHeads)
        predictors = box_predictors(model)
        assert predictors == list(model.roi_heads.box_predictor)
        for predictor in predictors:
            assert type(predictor.cls_score) is CausalNormClassifier
            shapes = {k: tuple(v.shape) for k, v in predictor.state_dict().items()}
            assert shapes.pop("cls_score.weight") == (CLASSES + 1, 32)
            assert shapes.pop("adjustments.tde.feature_mean") == (32,)
            assert set(shapes) == {
                *("bbox_pred.weight", "bbox_pred.bias"),
                *(f"adjustments.tde.{option}" for option in TDE.options),
            }
        stock = load_config("lvis_cascade_tde.yaml").MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        weights = [predictor.box2box_transform.weights for predictor in predictors]
        assert weights == list(stock) and len(set(weights)) == 3
        assert type(tiny_model(load_config, "TDEStandardROIHeads").roi_heads) is StandardROIHeads

    def test_linear_has_detectron2s_keys(self, load_config):
        ours = tiny_model(load_config, "TDECascadeROIHeads", *LINEAR)
        stock = tiny_model(
            load_config, "TDECascadeROIHeads", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"
        )
        assert list(ours.state_dict()) == list(stock.state_dict())

    @pytest.mark.parametrize(
        "key, value",
        [
            ("MODEL.TDE.CLASSIFIER", "softmax"),
            ("MODEL.TDE.NUM_HEADS", 5),
            ("MODEL.TDE.NUM_HEADS", 0),
            ("MODEL.TDE.TAU", 0.0),
            ("MODEL.TDE.GAMMA", -1.0),
            ("MODEL.TDE.MU", 1.0),
            ("MODEL.TDE.ALPHA", -0.5),
        ],
    )
    @HEADS
    def test_bad_config_values(self, load_config, heads, key, value):
        name = key.split(".")[-1].lower()
        with pytest.raises(InputError, match=rf"(?i)^MODEL\.TDE.*{name} must.*{value}"):
            tiny_model(load_config, heads, key, value)

    @HEADS
    def test_sigmoid_scores_exclude_tde_in_configs(self, load_config, heads):
        sigmoid = ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
        with pytest.raises(InputError, match="TDE changes softmax.*trains sigmoid scores"):
            tiny_model(load_config, heads, *sigmoid)
        tiny_model(load_config, heads, *sigmoid, "MODEL.TDE.ALPHA", 0.0)

    def test_what_does_not_go_together(self):
        sigmoid = SigmoidFocal(CLASSES)
        for loss in ({"use_sigmoid_ce": True}, {"classification_loss": sigmoid}):
            for wrong in (make_tde(), NCM(torch.zeros(8), torch.zeros(CLASSES, 8))):
                with pytest.raises(ValueError, match="trains sigmoid scores"):
                    make_predictor(adjustments={"x": wrong}, **loss)
            make_predictor(adjustments={"tde": make_tde(alpha=0.0)}, **loss)
            fracal = FRACAL(COUNTS, torch.ones(CLASSES))
            make_predictor(adjustments={"fracal": fracal}, **loss)
        with pytest.raises(ValueError, match="TDE needs a normalised classifier"):
            make_predictor(True, adjustments={"tde": make_tde()})
        with pytest.raises(ValueError, match="TauNorm divides"):
            make_predictor(adjustments={"tau_norm": TauNorm()})


class TestExport:
    @HEADS
    @pytest.mark.parametrize("classifier", ["causal_norm", "capsule"])
    def test_tracing(self, load_config, heads, classifier):
        model = tiny_model(load_config, heads, "MODEL.TDE.CLASSIFIER", classifier).eval()
        inputs = image_of(make_inputs(1))
        adapter = TracingAdapter(
            model, inputs, lambda model, inputs: [model.inference(inputs, None, False)[0]]
        )
        with torch.no_grad():
            traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
            other = torch.rand_like(inputs[0]["image"]) * 255
            for expected, actual in zip(adapter(other), traced(other)):
                torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("linear", [True, False])
    def test_scripting(self, load_config, linear, tmp_path):
        """With every adjustment, made by hand and loaded from a checkpoint."""
        opts = (*(LINEAR if linear else ()), *ALL, "MODEL.MASK_ON", False)
        model = spread(tiny_model(load_config, "TDEStandardROIHeads", *opts).eval())
        predictor = model.roi_heads.box_predictor
        for name, adjustment in adjustments(linear).items():
            if name == "ncm":
                adjustment = NCM(torch.rand(32), torch.randn(CLASSES, 32))
            if name != "tde":
                predictor.adjustments[name] = adjustment.with_options(exempt=name != "norcal")
        DetectionCheckpointer(model, str(tmp_path)).save("model")
        other = tiny_model(load_config, "TDEStandardROIHeads", *opts).eval()
        DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
        inputs = image_of(make_inputs(1))
        with torch.no_grad():
            (expected,) = model.inference(inputs, do_postprocess=False)
            for compiled in (scripted(model), scripted(other)):
                (actual,) = compiled.inference(inputs, do_postprocess=False)
                torch.testing.assert_close(actual.scores, expected.scores)
                torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
                assert torch.equal(actual.pred_classes, expected.pred_classes)

    @pytest.mark.parametrize("linear", [True, False])
    def test_a_trace_of_the_predictor(self, linear):
        chosen = adjustments(linear)
        predictor = make_predictor(linear, adjustments=chosen).eval().requires_grad_(False)
        proposals = make_proposals([0] * 4)

        class Scores(torch.nn.Module):
            def forward(self, x):
                logits, _, x = predictor(x)
                return predictor.adjustments(x, logits, predictor.cls_score.class_weight())

        with torch.no_grad():
            traced = torch.jit.trace(Scores(), torch.rand(7, DIM), check_trace=False)
            x = torch.rand(4, DIM)
            (expected,) = predictor.predict_probs(predictor(x), proposals)
            torch.testing.assert_close(traced(x).softmax(1), expected)

    @pytest.mark.parametrize("linear", [True, False])
    def test_nothing_stays_on_the_cpu(self, linear):
        """With tensors that say they are on a GPU, of which there need be none."""

        class Steps(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.predictor = make_predictor(linear, adjustments=adjustments(linear))
                self.loss = LDAM(CLASSES, counts=ClassCounts(COUNTS, COUNTS, 9))

            def forward(self, x, proposals):
                predictions = self.predictor(x)
                if not self.training:
                    boxes = self.predictor.predict_boxes(predictions, proposals)
                    return [*boxes, *self.predictor.predict_probs(predictions, proposals)]
                labels = proposals[0].gt_classes
                if not linear:
                    tde = self.predictor.adjustments["tde"]
                    tde.update_mean(predictions[2], labels < CLASSES)
                return [self.loss(predictions[0], labels)]

        for training in (True, False):
            module = Steps().train(training)
            state = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
            with FakeTensorMode():
                state = {
                    k: torch.zeros(v.shape, dtype=v.dtype, device="cuda") for k, v in state.items()
                }
                proposals = make_proposals([0, 1, 2, 5])[0].to("cuda")
                x = torch.zeros(4, DIM, device="cuda")
                results = torch.func.functional_call(module, state, (x, [proposals]))
            assert {result.device.type for result in results} == {"cuda"}


class TestCheckpoints:
    def test_buffers_survive(self, load_config, tmp_path):
        model, other = tiny_model(load_config), tiny_model(load_config)
        DetectionCheckpointer(model, str(tmp_path)).save("model")
        for predictor in box_predictors(other):
            predictor.adjustments["tde"].feature_mean.zero_()
        DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
        pairs = itertools.zip_longest(model.state_dict().items(), other.state_dict().items())
        for (name, a), (other_name, b) in pairs:
            assert name == other_name and torch.equal(a, b)

    def test_adjusted_detections_survive(self, load_config, tmp_path):
        inputs = make_inputs(1)
        model = spread(tiny_model(load_config, "TDECascadeROIHeads", *ALL)).eval()
        with torch.no_grad():
            (factual,) = model.inference(inputs, do_postprocess=False)
            for k, predictor in enumerate(box_predictors(model)):
                predictor.adjustments["norcal"] = NorCal(COUNTS * (k + 1), COUNTS, gamma=0.3)
            (expected,) = model.inference(inputs, do_postprocess=False)
        assert not torch.equal(expected.scores, factual.scores)
        DetectionCheckpointer(model, str(tmp_path)).save("adjusted")
        other = tiny_model(load_config, "TDECascadeROIHeads", *ALL).eval()
        DetectionCheckpointer(other).load(str(tmp_path / "adjusted.pth"))
        with torch.no_grad():
            (actual,) = other.inference(inputs, do_postprocess=False)
        assert_same(actual, expected)

    def test_linear_checkpoint_loads_with_a_warning(self, load_config, tmp_path, caplog):
        stock = tiny_model(load_config, "TDECascadeROIHeads", *LINEAR)
        DetectionCheckpointer(stock, str(tmp_path)).save("model")
        model = tiny_model(load_config)
        DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))
        for stage, (ours, theirs) in enumerate(zip(box_predictors(model), box_predictors(stock))):
            assert torch.equal(ours.cls_score.weight, theirs.cls_score.weight)
            name = f"roi_heads.box_predictor.{stage}"
            assert f"{name}.cls_score.weight comes from a linear classifier" in caplog.text
            assert f"{name}.adjustments.tde" in caplog.text  # Detectron2 lists what is missing
