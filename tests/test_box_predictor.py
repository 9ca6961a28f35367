"""The classifier inside Detectron2's heads: training, inference, export, checkpoints, errors."""

import copy
import itertools

import pytest
import torch
from conftest import scripted
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.evaluation.evaluator import inference_context
from detectron2.export import TracingAdapter
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from tde_det import TDEOutputLayers
from tde_det.inference.run_length_masks import RunLengthMasks

DIM, CLASSES = 16, 5
TINY = (
    *("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
)


def make_predictor(use_sigmoid_ce=False, use_fed_loss=False, **tde):
    return TDEOutputLayers(
        ShapeSpec(channels=DIM),
        tde=tde,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=True,
        use_sigmoid_ce=use_sigmoid_ce,
        use_fed_loss=use_fed_loss,
        get_fed_loss_cls_weights=lambda: torch.ones(CLASSES),
        loss_weight=1.0,
    )


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
    for module in model.modules():
        if isinstance(module, TDEOutputLayers):
            module.cls_score.feature_mean.uniform_(0, 1)
    return model


class TestTraining:
    def test_mean_takes_foreground_only_class_0_included(self):
        predictor = make_predictor().train()
        x = torch.rand(5, DIM)
        with EventStorage():
            labels = [0, CLASSES, 4, CLASSES, CLASSES]
            predictor.losses(predictor(x), make_proposals(labels))
        torch.testing.assert_close(predictor.cls_score.feature_mean, (x[0] + x[2]) / 2)

    def test_losses_are_detectron2s(self):
        predictor = make_predictor().train()
        x, proposals = torch.rand(4, DIM), make_proposals([0, 1, CLASSES, 2])
        with EventStorage():
            logits, deltas = predictor(x)
            losses = predictor.losses((logits, deltas), proposals)
            expected = FastRCNNOutputLayers.losses(predictor, (logits, deltas), proposals)
        assert losses == expected
        sum(losses.values()).backward()
        assert torch.isfinite(predictor.cls_score.weight.grad).all()

    def test_features_are_used_once(self):
        predictor = make_predictor().train()
        proposals = make_proposals([0])
        with EventStorage():
            predictions = predictor(torch.rand(1, DIM))
            predictor.losses(predictions, proposals)
            assert predictor._features is None
            with pytest.raises(RuntimeError, match="forward"):
                predictor.losses(predictions, proposals)

    def test_batch_without_foreground_and_empty_batch(self):
        predictor = make_predictor().train()
        predictor.cls_score.feature_mean.fill_(1)
        with EventStorage():
            predictor.losses(predictor(torch.rand(2, DIM)), make_proposals([CLASSES] * 2))
            predictor.losses(predictor(torch.rand(0, DIM)), make_proposals([]))
            predictor.losses(predictor(torch.rand(0, DIM)), [])
        assert torch.equal(predictor.cls_score.feature_mean, torch.ones(DIM))

    @pytest.mark.parametrize("heads", ["TDECascadeROIHeads", "TDEStandardROIHeads"])
    def test_whole_model_trains_also_without_objects(self, load_config, heads):
        model = tiny_model(load_config, heads).train()
        predictors = [m for m in model.modules() if isinstance(m, TDEOutputLayers)]
        before = [p.cls_score.feature_mean.clone() for p in predictors]
        with EventStorage():
            losses = model(make_inputs())
            sum(losses.values()).backward()
            assert all(torch.isfinite(v) for v in losses.values())
            after = [p.cls_score.feature_mean.clone() for p in predictors]
            assert all(not torch.equal(a, b) for a, b in zip(before, after))
            model(make_inputs(with_objects=False))
        for predictor, mean in zip(predictors, after):
            assert torch.equal(predictor.cls_score.feature_mean, mean)

    def test_autocast(self, load_config):
        model = tiny_model(load_config).train()
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(make_inputs())
        sum(losses.values()).backward()
        for predictor in model.roi_heads.box_predictor:
            assert predictor.cls_score.feature_mean.dtype == torch.float32
            assert torch.isfinite(predictor.cls_score.weight.grad).all()


class TestFasterInference:
    """The whole model against one of Detectron2's own classes with the same weights."""

    @pytest.mark.parametrize("heads", ["CascadeROIHeads", "StandardROIHeads"])
    def test_equal_detections_and_masks(self, load_config, heads):
        settings = ("MODEL.TDE.CLASSIFIER", "linear", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4)
        many = ("MODEL.ROI_HEADS.NUM_CLASSES", 80, "MODEL.RPN.POST_NMS_TOPK_TEST", 100)
        ours = tiny_model(load_config, f"TDE{heads}", *settings, *many).eval()
        stock = tiny_model(
            load_config, f"TDE{heads}", *settings, *many, "MODEL.ROI_HEADS.NAME", heads
        )
        stock.eval().load_state_dict(ours.state_dict())
        assert type(stock.roi_heads).__module__.startswith("detectron2.")
        inputs = make_inputs()
        inputs[1].update(height=100, width=90)
        with torch.no_grad():
            for expected, actual in zip(stock(inputs), RunLengthMasks(ours)(inputs)):
                expected, actual = expected["instances"], actual["instances"]
                assert len(actual) == 300 and not actual.has("pred_masks")
                assert torch.equal(expected.pred_boxes.tensor, actual.pred_boxes.tensor)
                assert torch.equal(expected.scores, actual.scores)
                assert torch.equal(expected.pred_classes, actual.pred_classes)
                records = instances_to_coco_json(expected, 0)
                assert actual.pred_masks_rle == [r["segmentation"] for r in records]

    @pytest.mark.parametrize("training", [True, False])
    def test_mode_survives_evaluation(self, load_config, training):
        model = tiny_model(load_config).train(training)
        with inference_context(RunLengthMasks(model)):
            assert not model.training
        assert model.training == model.backbone.training == training

    def test_no_detections(self, load_config):
        model = tiny_model(
            load_config, "TDECascadeROIHeads", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0
        )
        with torch.no_grad():
            outputs = RunLengthMasks(model.eval())(make_inputs())
        assert [output["instances"].pred_masks_rle for output in outputs] == [[], []]

    def test_probabilities_computed_once_are_the_softmax(self):
        predictor = make_predictor(alpha=1.5).eval()
        predictor.cls_score.feature_mean.uniform_(0, 1)
        proposals = make_proposals([0, 1, 2]) + make_proposals([1])
        with torch.no_grad():
            logits, deltas = predictor(torch.randn(4, DIM))
            probs = predictor.predict_probs((logits, deltas), proposals)
            again = predictor.predict_probs((logits.clone(), deltas), proposals)
        assert [len(p) for p in probs] == [3, 1]
        torch.testing.assert_close(torch.cat(probs), logits.softmax(1))
        torch.testing.assert_close(torch.cat(again), logits.softmax(1), rtol=0, atol=0)


class TestStructure:
    def test_state_and_box_transforms(self, load_config):
        model = tiny_model(load_config)
        assert isinstance(model.roi_heads, CascadeROIHeads)
        weights = []
        for predictor in model.roi_heads.box_predictor:
            state = predictor.cls_score.state_dict()
            assert state["weight"].shape == (CLASSES + 1, 32)
            assert state["feature_mean"].shape == (32,)
            assert set(state) == {"weight", "feature_mean", "foreground_cosine"}
            weights.append(predictor.box2box_transform.weights)
        stock = load_config("lvis_cascade_tde.yaml").MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        assert weights == list(stock) and len(set(weights)) == 3
        assert type(tiny_model(load_config, "TDEStandardROIHeads").roi_heads) is StandardROIHeads

    def test_linear_is_detectron2s_own(self, load_config):
        model = tiny_model(load_config, "TDECascadeROIHeads", "MODEL.TDE.CLASSIFIER", "linear")
        for predictor in model.roi_heads.box_predictor:
            assert isinstance(predictor, FastRCNNOutputLayers)
            assert type(predictor.cls_score) is torch.nn.Linear

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
    @pytest.mark.parametrize("heads", ["TDECascadeROIHeads", "TDEStandardROIHeads"])
    def test_bad_config_values(self, load_config, heads, key, value):
        with pytest.raises(ValueError, match=key):
            tiny_model(load_config, heads, key, value)

    @pytest.mark.parametrize("heads", ["TDECascadeROIHeads", "TDEStandardROIHeads"])
    @pytest.mark.parametrize("losses", [("SIGMOID_CE",), ("FED_LOSS",), ("SIGMOID_CE", "FED_LOSS")])
    def test_sigmoid_losses_exclude_tde_in_configs(self, load_config, heads, losses):
        opts = [v for loss in losses for v in (f"MODEL.ROI_BOX_HEAD.USE_{loss}", True)]
        with pytest.raises(ValueError, match="no.*softmax background to exempt|Set both to False"):
            tiny_model(load_config, heads, *opts)

    @pytest.mark.parametrize("fed", [True, False])
    def test_sigmoid_losses_exclude_tde(self, fed):
        with pytest.raises(ValueError, match="USE_SIGMOID_CE.*Set both to False"):
            make_predictor(use_sigmoid_ce=True, use_fed_loss=fed)
        make_predictor(use_sigmoid_ce=True, use_fed_loss=fed, alpha=0.0)


class TestInference:
    def test_cascade_scores_are_the_mean_of_one_softmax_per_stage(self, load_config):
        """Against the stages' own logits: TDE inside, softmax once, averaged by Detectron2."""
        heads = tiny_model(load_config).eval().roi_heads
        recorded = []
        for predictor in heads.box_predictor:
            predictor.register_forward_hook(lambda m, args, out: recorded.append((m, args[0], out)))
        features = {
            f: torch.rand(1, 16, 32 // 2**i, 32 // 2**i)
            for i, f in enumerate(["p2", "p3", "p4", "p5"])
        }
        proposals = Instances((128, 128))
        proposals.proposal_boxes = Boxes(torch.tensor([[5.0, 5.0, 60.0, 90.0]]))
        heads.mask_on = False
        with torch.no_grad():
            for predictor in heads.box_predictor:
                predictor.test_score_thresh, predictor.test_nms_thresh = 0.0, 1.0
            (result,) = heads._forward_box(features, [proposals])
        expected = torch.zeros(CLASSES)
        for predictor, x, (logits, _) in recorded:
            factual = copy.deepcopy(predictor.cls_score).train()(x).softmax(1)
            scores = logits.softmax(1)
            torch.testing.assert_close(scores[:, -1], factual[:, -1])
            assert not torch.allclose(scores, factual)
            expected += scores[0, :-1] / 3
        actual = torch.zeros(CLASSES)
        actual[result.pred_classes] = result.scores
        torch.testing.assert_close(actual, expected)

    def test_alpha_changes_inference_only(self, load_config):
        tde, factual = (
            tiny_model(load_config, "TDECascadeROIHeads", "MODEL.TDE.ALPHA", alpha)
            for alpha in (1.5, 0.0)
        )
        factual.load_state_dict(tde.state_dict())
        inputs = make_inputs(1)
        losses = []
        for model in (tde, factual):
            torch.manual_seed(1)
            with EventStorage():
                losses.append(model.train()(inputs))
        assert losses[0] == losses[1]
        factual.load_state_dict(tde.state_dict())
        for model in (tde, factual):
            model.roi_heads.box_predictor[-1].test_score_thresh = 0.0
        with torch.no_grad():
            a, b = (model.eval()(inputs)[0]["instances"] for model in (tde, factual))
        assert not torch.equal(a.scores, b.scores)

    def test_detectron2s_test_time_augmentation(self, load_config):
        opts = ("TEST.AUG.MIN_SIZES", (48, 64), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        model = tiny_model(load_config, "TDECascadeROIHeads", *opts).eval()
        cfg = load_config("lvis_cascade_tde.yaml", *TINY, *opts)
        image = {"image": make_inputs(1)[0]["image"], "height": 64, "width": 64}
        with torch.no_grad():
            (output,) = GeneralizedRCNNWithTTA(cfg, model)([image])
        assert len(output["instances"]) and torch.isfinite(output["instances"].scores).all()

    def test_empty_proposals(self):
        predictor = make_predictor().eval()
        logits, deltas = predictor(torch.rand(0, DIM))
        assert logits.shape == (0, CLASSES + 1) and deltas.shape == (0, 4)
        results, _ = predictor.inference((logits, deltas), make_proposals([]))
        assert len(results[0]) == 0


class TestExport:
    @pytest.mark.parametrize("heads", ["TDECascadeROIHeads", "TDEStandardROIHeads"])
    @pytest.mark.parametrize("classifier", ["causal_norm", "capsule"])
    def test_tracing(self, load_config, heads, classifier):
        model = tiny_model(load_config, heads, "MODEL.TDE.CLASSIFIER", classifier).eval()
        inputs = [{"image": make_inputs(1)[0]["image"]}]
        adapter = TracingAdapter(
            model, inputs, lambda model, inputs: [model.inference(inputs, None, False)[0]]
        )
        with torch.no_grad():
            traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
            other = torch.rand_like(inputs[0]["image"]) * 255
            for expected, actual in zip(adapter(other), traced(other)):
                torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("exempt", [True, False])
    def test_scripting(self, load_config, exempt):
        model = tiny_model(
            load_config, "TDEStandardROIHeads", "MODEL.TDE.BACKGROUND_EXEMPT", exempt
        ).eval()
        inputs = [{"image": make_inputs(1)[0]["image"]}]
        with torch.no_grad():
            (expected,) = model.inference(inputs, do_postprocess=False)
            (actual,) = scripted(model).inference(inputs, do_postprocess=False)
        torch.testing.assert_close(actual.scores, expected.scores)
        torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


class TestCheckpoints:
    def test_buffers_survive(self, load_config, tmp_path):
        model = tiny_model(load_config)
        DetectionCheckpointer(model, str(tmp_path)).save("model")
        other = tiny_model(load_config)
        for predictor in other.roi_heads.box_predictor:
            predictor.cls_score.feature_mean.zero_()
        DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
        pairs = itertools.zip_longest(model.state_dict().items(), other.state_dict().items())
        for (name, a), (other_name, b) in pairs:
            assert name == other_name and torch.equal(a, b)

    def test_linear_checkpoint_loads_with_a_warning(self, load_config, tmp_path, caplog):
        stock = tiny_model(load_config, "TDECascadeROIHeads", "MODEL.TDE.CLASSIFIER", "linear")
        DetectionCheckpointer(stock, str(tmp_path)).save("model")
        model = tiny_model(load_config)
        DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))
        for stage in range(3):
            ours = model.roi_heads.box_predictor[stage].cls_score
            theirs = stock.roi_heads.box_predictor[stage].cls_score
            assert torch.equal(ours.weight, theirs.weight)
            name = f"roi_heads.box_predictor.{stage}.cls_score"
            assert f"Dropped: {name}.bias" in caplog.text
            assert f"{name}.feature_mean" in caplog.text
