"""What training puts into Detectron2's event storage, against plain loops."""

import copy
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from tde_det.adjustments import TDE
from tde_det.class_counts import ClassCounts
from tde_det.data.categories import categories_of
from tde_det.errors import InputError
from tde_det.losses import LOSSES
from tde_det.modeling import TDEOutputLayers
from tde_det.modeling.build import TrainingSet
from tde_det.modeling.training_events import TrainingEvents

C, D, K = 6, 8, 2
FREQUENCIES = "rrccff"


def make_predictor(linear=False, loss=None, frequencies=lambda: FREQUENCIES):
    torch.manual_seed(0)
    predictor = TDEOutputLayers(
        ShapeSpec(channels=D),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=C,
        cls_agnostic_bbox_reg=True,
        classifier=None if linear else {"num_heads": K},
        adjustments=None if linear else {"tde": TDE(D, K, mu=0.9, alpha=0)},
        classification_loss=loss,
    )
    predictor.training_events = TrainingEvents(frequencies)
    torch.nn.init.normal_(predictor.cls_score.weight, std=1.0)
    return predictor.train()


def proposals_with(labels):
    proposals = Instances((64, 64))
    boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0]]).repeat(len(labels), 1)
    proposals.proposal_boxes, proposals.gt_boxes = Boxes(boxes), Boxes(boxes + 1)
    proposals.gt_classes = torch.tensor(labels, dtype=torch.long)
    return [proposals]


def put(predictor, x, labels):
    """The events of one batch."""
    with EventStorage() as storage:
        predictor.losses(predictor(x), proposals_with(labels))
    return {k: v for k, (v, _) in storage.latest().items() if k.split("/")[0] != "fast_rcnn"}


def naive_score(logits, label, activation):
    z = logits.double().tolist()
    if activation == "softmax":
        return math.exp(z[label]) / sum(map(math.exp, z))
    if activation == "sigmoid":
        return 1 / (1 + math.exp(-z[label]))
    if activation == "gumbel":
        return math.exp(-math.exp(-z[label]))
    objectness = 1 - 1 / (1 + math.exp(-z[-1]))
    return objectness * naive_score(logits[:-1], label, activation.split("_")[1])


def naive_cosine(x, mean):
    cosines = []
    for k in range(K):
        a, b = (v.double().tolist()[k * D // K : (k + 1) * D // K] for v in (x, mean))
        product = sum(p * q for p, q in zip(a, b))
        cosines.append(product / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b)))
    return sum(cosines) / K


def loss_of(name):
    return LOSSES[name](C, counts=ClassCounts(torch.arange(1, C + 1), torch.arange(1, C + 1), 50))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("loss", [None, *LOSSES])
def test_against_loops(linear, loss):
    predictor = make_predictor(linear, loss and loss_of(loss))
    activation = predictor.activation
    norm = None
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.rand(9, D)
        labels = [0, 1, C, 2, 4, 5, 5, 3, C]
        with torch.no_grad():
            logits = predictor(x)[0]
        events = put(predictor, x, labels)
        for name, classes in (("rare", (0, 1)), ("common", (2, 3)), ("frequent", (4, 5))):
            rows = [i for i, label in enumerate(labels) if label in classes]
            scores = [naive_score(logits[i], labels[i], activation) for i in rows]
            expected = sum(scores) / len(scores)
            assert events.pop(f"probability/{name}") == pytest.approx(expected, rel=1e-5)
        if not linear:
            mean = predictor.adjustments["tde"].feature_mean
            cosines = [naive_cosine(x[i], mean) for i, v in enumerate(labels) if 0 <= v < C]
            expected = sum(cosines) / len(cosines)
            assert events.pop("tde/foreground_cosine") == pytest.approx(expected, rel=1e-5)
            before, norm = norm, math.sqrt(sum(v * v for v in mean.double().tolist()))
            if seed:
                change = (norm - before) / before
                assert events.pop("tde/mean_norm_change") == pytest.approx(change, rel=1e-4)
        assert not events


def test_what_cannot_be_measured_is_not_put():
    predictor = make_predictor()
    assert put(predictor, torch.rand(3, D), [C, C, C]) == {}  # no mean, no foreground
    assert put(predictor, torch.rand(0, D), []) == {}
    assert {*put(predictor, torch.rand(2, D), [3, C])} == {
        "tde/foreground_cosine",
        "probability/common",
    }
    # Without foreground the mean stays.
    assert put(predictor, torch.rand(3, D), [C, C, C]) == {"tde/mean_norm_change": 0}
    broken = torch.full((2, D), math.nan)
    assert put(predictor, broken, [3, C]) == {"tde/mean_norm_change": 0}
    with EventStorage() as storage:
        predictor.losses(predictor(torch.rand(0, D)), [])
    assert storage.latest()["tde/mean_norm_change"][0] == 0


def test_without_an_event_storage():
    predictor = make_predictor()
    x, labels = torch.rand(4, D), torch.tensor([0, 1, 2, C])
    logits = predictor(x)[0]
    predictor.training_events.put(x, logits, labels, "softmax", predictor.adjustments)


def test_the_losses_stay_the_same():
    x, labels = torch.rand(5, D), [0, 1, 3, 5, C]
    one, other = make_predictor(), make_predictor()
    other.training_events.put = lambda *args: None
    with EventStorage():
        losses = [p.losses(p(x), proposals_with(labels)) for p in (one, other)]
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])
    assert torch.equal(one.adjustments["tde"].feature_mean, other.adjustments["tde"].feature_mean)


def test_unknown_frequencies(caplog):
    def unreadable():
        raise InputError("no file")

    for frequencies in (None, unreadable):
        predictor = make_predictor(frequencies=frequencies)
        for _ in range(2):
            assert {*put(predictor, torch.rand(2, D), [0, C])} <= {
                "tde/foreground_cosine",
                "tde/mean_norm_change",
            }
    assert caplog.text.count("no file") == 1


def test_half_precision():
    predictor = make_predictor()
    with EventStorage() as storage, torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.losses(predictor(torch.rand(4, D)), proposals_with([0, 2, 4, C]))
    assert {"tde/foreground_cosine", "probability/rare"} <= {*storage.latest()}
    copy.deepcopy(predictor)


def test_other_processes_put_nothing(monkeypatch):
    """Their events are never written."""
    predictor = make_predictor()
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert put(predictor, torch.rand(3, D), [0, 2, 4]) == {}
    assert predictor.adjustments["tde"].feature_mean.any()


def test_frequencies_are_those_of_the_evaluation(load_config):
    cfg = load_config("lvis_cascade_tde.yaml")
    frequencies = TrainingSet(cfg).frequencies()  # needs no file
    assert frequencies == [c["frequency"] for c in categories_of("lvis_v1_val")]
    assert {*frequencies} == {*"rcf"}
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3  # none of LVIS's
    with pytest.raises(InputError):
        TrainingSet(cfg).frequencies()
