"""Every loss against a loop over boxes and classes, at its limits, on odd batches."""

import math

import naive_losses as naive
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from tde_det.activations import ACTIVATIONS, prior_logit, scores_from_logits
from tde_det.class_counts import ClassCounts
from tde_det.losses import LOSSES, ClassificationLoss
from tde_det.losses.federated import sample_classes

C, N = 6, 23
COUNTS = ClassCounts(
    torch.tensor([500, 120, 33, 8, 2, 1]), torch.tensor([200, 90, 30, 7, 2, 1]), 400
)
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


def make(name, background=True, counts=COUNTS, **options):
    return LOSSES[name](C, background=background, counts=counts, **options).double()


def batch(seed=0, background=True, size=N, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    columns = C + background
    logits = scale * torch.randn(size, columns, dtype=torch.float64, generator=generator)
    labels = torch.randint(columns, (size,), generator=generator)
    return logits, labels


def naive_loss(name, background):
    """A function of lists of logits and labels, with the losses' default parameters."""
    instances = [float(n) for n in COUNTS.instances]
    effective = naive.effective_weights(instances, 0.9999)
    with_background = instances + ([6.3313 * sum(instances)] if background else [])
    return {
        "cross_entropy": naive.cross_entropy,
        "weighted_cross_entropy": lambda z, y: naive.weighted_cross_entropy(
            z, y, naive.inverse_weights(instances, 1.0)
        ),
        "focal": lambda z, y: naive.focal(z, y, 2.0),
        "sigmoid_focal": lambda z, y: naive.sigmoid_focal(z, y, C, 2.0, 0.25),
        "cb_cross_entropy": lambda z, y: naive.weighted_cross_entropy(z, y, effective),
        "cb_focal": lambda z, y: naive.sigmoid_focal(z, y, C, 2.0, -1, effective),
        "ldam": lambda z, y: naive.ldam(z, y, instances, 0.5, 16.0),
        "eql": lambda z, y: naive.eql(z, y, COUNTS.images.tolist(), COUNTS.num_images, 0.05),
        "eqlv2": naive.EQLv2(C, 12.0, 0.8, 4.0),
        "seesaw": naive.Seesaw(C + background, 0.8, 2.0, background),
        "balanced_softmax": lambda z, y: naive.logit_adjustment(z, y, instances, 1, background),
        "logit_adjustment": lambda z, y: naive.logit_adjustment(z, y, instances, 1, background),
        "gol": naive.gol,
        "ecm": lambda z, y: naive.ecm(z, y, with_background),
    }[name]


OPTIONS = {"eql": {"threshold": 0.05}}
SAMPLED = ("federated", "softmax_federated")


class TestFormulas:
    @pytest.mark.parametrize("background", [True, False])
    @pytest.mark.parametrize("name", [n for n in LOSSES if n not in SAMPLED])
    def test_equals_the_loops_batch_after_batch(self, name, background):
        loss = make(name, background, **OPTIONS.get(name, {}))
        expected = naive_loss(name, background)
        for seed in range(5):
            logits, labels = batch(seed, background)
            torch.testing.assert_close(
                float(loss(logits, labels)),
                expected(logits.tolist(), labels.tolist()),
                rtol=1e-10,
                atol=1e-10,
            )

    @pytest.mark.parametrize("background", [True, False])
    @pytest.mark.parametrize("name", SAMPLED)
    def test_sampled_losses_equal_the_loops(self, name, background):
        loss = make(name, background, num_sampled=4)
        for seed in range(5):
            logits, labels = batch(seed, background, size=3)
            torch.manual_seed(seed)
            sampled = sample_classes(labels, 4, loss.sampling_weights).nonzero().flatten().tolist()
            if name == "softmax_federated" and background:
                sampled.append(C)
            torch.manual_seed(seed)
            expected = getattr(naive, name)(logits.tolist(), labels.tolist(), sampled)
            torch.testing.assert_close(
                float(loss(logits, labels)), expected, rtol=1e-10, atol=1e-10
            )

    @pytest.mark.parametrize("background", [True, False])
    @EVERY_LOSS
    def test_gradients(self, name, background):
        loss = make(name, background, **OPTIONS.get(name, {}))
        loss(*batch(1, background))  # so that statistics are not all 0
        state = {k: v.clone() for k, v in loss.state_dict().items()}
        logits, labels = batch(2, background, size=7, scale=1.0)
        # Seesaw's ratio has no gradient by definition: with p = q = 0 there is none to leave out.
        if name == "seesaw":
            loss.q = 0.0

        def function(z):
            loss.load_state_dict(state)
            torch.manual_seed(0)
            return loss(z, labels)

        assert torch.autograd.gradcheck(function, (logits.requires_grad_(),))

    def test_seesaws_ratio_is_a_constant_to_the_gradient(self):
        loss = make("seesaw", objectness=False, p=0.0)
        logits, labels = batch(3)
        logits.requires_grad_()
        loss(logits, labels).backward()
        with torch.no_grad():
            probs = logits.softmax(dim=1)
            ratio = probs / probs.gather(1, labels[:, None]).clamp(min=1e-2)
            log_s = 2.0 * ratio.clamp(min=1).log()
            log_s[torch.arange(N), labels] = 0
            target = F.one_hot(labels, C + 1)
            expected = ((logits + log_s).softmax(dim=1) - target) / N
        torch.testing.assert_close(logits.grad, expected)

    def test_drw_starts_at_its_iteration(self):
        loss = make("ldam", drw_start=2, drw_beta=0.99)
        instances = [float(n) for n in COUNTS.instances]
        weights = naive.effective_weights(instances, 0.99)
        for iteration in range(4):
            logits, labels = batch(iteration)
            expected = naive.ldam(
                logits.tolist(),
                labels.tolist(),
                instances,
                0.5,
                16.0,
                weights if iteration >= 2 else None,
            )
            torch.testing.assert_close(float(loss(logits, labels)), expected)


class TestLimits:
    @pytest.mark.parametrize(
        "name, options",
        [
            ("focal", {"gamma": 0.0}),
            ("cb_cross_entropy", {"beta": 0.0}),
            ("weighted_cross_entropy", {"power": 0.0}),
            ("ldam", {"max_margin": 0.0}),
            ("seesaw", {"p": 0.0, "q": 0.0, "objectness": False}),
            ("softmax_federated", {"num_sampled": C + 1}),
            ("logit_adjustment", {"tau": 0.0}),
        ],
    )
    @pytest.mark.parametrize("background", [True, False])
    def test_is_cross_entropy(self, name, options, background):
        for seed in range(3):
            logits, labels = batch(seed, background)
            loss = make(name, background, **options)(logits, labels)
            torch.testing.assert_close(
                loss, F.cross_entropy(logits, labels), rtol=1e-12, atol=1e-12
            )

    @pytest.mark.parametrize(
        "name", ["weighted_cross_entropy", "cb_cross_entropy", "balanced_softmax"]
    )
    def test_equal_counts_are_cross_entropy(self, name):
        equal = ClassCounts(torch.full((C,), 40), torch.full((C,), 30), 100)
        logits, labels = batch()
        loss = make(name, counts=equal)(logits, labels)
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels), rtol=1e-12, atol=1e-12)

    def test_ldam_with_equal_counts_is_shifted_cross_entropy(self):
        equal = ClassCounts(torch.full((C,), 40), torch.full((C,), 30), 100)
        logits, labels = batch(background=False)
        shifted = logits - 8.0 * F.one_hot(labels, C)
        loss = make("ldam", False, equal, max_margin=0.5, scale=16.0)(logits, labels)
        torch.testing.assert_close(loss, F.cross_entropy(shifted, labels))

    def test_seesaw_with_objectness_is_cross_entropy_of_its_scores(self):
        logits, labels = batch()
        scores = scores_from_logits(logits, "objectness_softmax")
        loss = make("seesaw", p=0.0, q=0.0)(logits, labels)
        torch.testing.assert_close(loss, F.nll_loss(scores.log(), labels))

    @pytest.mark.parametrize(
        "name, options",
        [
            ("sigmoid_focal", {"gamma": 0.0, "alpha": -1.0}),
            ("cb_focal", {"gamma": 0.0, "beta": 0.0}),
            ("eql", {"threshold": 0.0}),
            ("federated", {"num_sampled": C + 1}),
        ],
    )
    def test_is_detectron2s_sigmoid_loss(self, name, options):
        class Stock:
            use_fed_loss = False

        logits, labels = batch()
        expected = FastRCNNOutputLayers.sigmoid_cross_entropy_loss(Stock(), logits, labels)
        torch.testing.assert_close(make(name, **options)(logits, labels), expected)

    def test_cb_tends_to_inverse_frequency(self):
        logits, labels = batch()
        torch.testing.assert_close(
            make("cb_cross_entropy", beta=1 - 1e-11)(logits, labels),
            make("weighted_cross_entropy")(logits, labels),
            rtol=1e-6,
            atol=0,
        )

    def test_eqlv2_starts_as_plain_binary_cross_entropy(self):
        logits, labels = batch()
        target = F.one_hot(labels, C + 1).double()
        expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / N
        torch.testing.assert_close(make("eqlv2")(logits, labels), expected)

    def test_federated_samples_as_detectron2_does(self):
        weights = COUNTS.images.float() ** 0.5
        for seed in range(20):
            labels = batch(seed, size=3)[1]
            torch.manual_seed(seed)
            stock = FastRCNNOutputLayers.get_fed_loss_classes(None, labels, 5, C, weights)
            torch.manual_seed(seed)
            ours = sample_classes(labels, 5, weights).nonzero().flatten()
            assert sorted(ours.tolist()) == sorted(i for i in stock.tolist() if i < C)


class TestOddInput:
    @EVERY_LOSS
    def test_no_boxes_give_a_zero_that_has_a_gradient(self, name):
        logits = torch.zeros(0, C + 1, requires_grad=True)
        loss = LOSSES[name](C, counts=COUNTS)
        value = loss(logits, torch.zeros(0, dtype=torch.long))
        value.backward()
        assert value == 0 and logits.grad.shape == (0, C + 1)
        assert torch.isfinite(loss(torch.zeros(3, C + 1), torch.tensor([0, 5, 6])))

    @EVERY_LOSS
    def test_background_only_and_one_box(self, name):
        loss = LOSSES[name](C, counts=COUNTS)
        for labels in ([C, C, C], [2], [C]):
            logits = torch.randn(len(labels), C + 1, requires_grad=True)
            value = loss(logits, torch.tensor(labels))
            value.backward()
            assert torch.isfinite(value) and torch.isfinite(logits.grad).all()

    @EVERY_LOSS
    def test_extreme_logits_stay_finite(self, name):
        loss = LOSSES[name](C, counts=COUNTS)
        for value in (-80.0, 80.0):
            for label in (0, 5, C):
                logits = torch.zeros(1, C + 1)
                logits[0, label] = value
                logits.requires_grad_()
                result = loss(logits, torch.tensor([label]))
                result.backward()
                assert torch.isfinite(result) and torch.isfinite(logits.grad).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @EVERY_LOSS
    def test_half_precision_and_autocast_give_float32(self, name, dtype):
        logits, labels = batch()
        logits = logits.to(dtype)
        torch.manual_seed(0)
        expected = LOSSES[name](C, counts=COUNTS)(logits.float(), labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(0)
            value = LOSSES[name](C, counts=COUNTS)(logits, labels)
        assert value.dtype == torch.float32 and value == expected

    @EVERY_LOSS
    def test_classes_that_training_never_sees(self, name):
        empty = ClassCounts(torch.tensor([9, 0, 0, 5, 0, 1]), torch.tensor([9, 0, 0, 5, 0, 1]), 9)
        value = make(name, counts=empty)(*batch())
        assert torch.isfinite(value)

    @EVERY_LOSS
    def test_state_goes_on_after_loading(self, name):
        one, other = make(name), make(name)
        for seed in range(3):
            one(*batch(seed))
        other.load_state_dict(one.state_dict())
        for loss in (one, other):
            torch.manual_seed(0)
            loss.value = float(loss(*batch(9)))
        assert one.value == other.value

    @EVERY_LOSS
    def test_a_new_training_starts_with_new_statistics(self, name):
        fresh, used = make(name), make(name)
        for seed in range(3):
            used(*batch(seed))
        used.reset_statistics()
        for loss in (fresh, used):
            torch.manual_seed(0)
            loss.value = float(loss(*batch(9)))
        assert fresh.value == used.value

    def test_errors(self):
        needing = [n for n, kind in LOSSES.items() if kind.needs_counts]
        assert len(needing) == 10
        for name in needing:
            loss = LOSSES[name](C)  # a model that only infers has a loss, too
            with pytest.raises(ValueError, match=f"{type(loss).__name__} needs counts"):
                loss(*batch())
            with pytest.raises(ValueError, match="counts are of 6 classes, not of 7"):
                LOSSES[name](7, counts=COUNTS)
        for name, option, value in [
            ("focal", "gamma", -1.0),
            ("sigmoid_focal", "alpha", 1.5),
            ("cb_cross_entropy", "beta", 1.0),
            ("cb_focal", "gamma", math.nan),
            ("ldam", "max_margin", -0.1),
            ("eql", "threshold", 2.0),
            ("seesaw", "p", -0.5),
            ("softmax_federated", "num_sampled", 0),
            ("logit_adjustment", "tau", math.inf),
            ("ecm", "background_ratio", 0.0),
        ]:
            with pytest.raises(ValueError, match=f"^{option} must be"):
                make(name, **{option: value})
        for name in ("cb_cross_entropy", "cb_focal"):
            with pytest.raises(ValueError, match=r"^beta must be in \[0, 1\), got 1"):
                make(name, beta=1)
            with pytest.raises(TypeError, match="power"):  # no option is accepted and ignored
                make(name, power=0.5)
        with pytest.raises(ValueError, match="^mu must be"):
            make("eqlv2", mu=math.nan)
        with pytest.raises(TypeError, match="abstract"):
            ClassificationLoss(C)


def test_eqlv2_goes_on_counting():
    loss = make("eqlv2")
    loss.positive_gradient += 1e9
    loss.negative_gradient += 1e9
    before = {k: v.clone() for k, v in loss.state_dict().items() if "gradient" in k}
    loss(torch.zeros(1, C + 1), torch.zeros(1, dtype=torch.long))
    for key, value in loss.state_dict().items():
        if key in before:
            assert (value != before[key]).sum() == (1 if "positive" in key else C - 1)


class TestActivations:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_equals_the_loops(self, activation):
        logits, _ = batch()
        expected = [naive.scores(z, activation) for z in logits.tolist()]
        scores = scores_from_logits(logits, activation)
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))
        if "softmax" in activation:
            torch.testing.assert_close(scores.sum(dim=1), torch.ones(N, dtype=torch.float64))

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_without_background(self, activation):
        logits, _ = batch(background=False)
        kind = activation.replace("objectness_", "")
        expected = [naive.scores(z, kind) for z in logits.tolist()]
        scores = scores_from_logits(logits, activation, background=False)
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))

    def test_prior(self):
        for activation in ("sigmoid", "objectness_sigmoid", "gumbel"):
            logit = torch.tensor([[prior_logit(0.01, activation), -1000.0]], dtype=torch.float64)
            assert float(scores_from_logits(logit, activation)[0, 0]) == pytest.approx(0.01)

    def test_every_loss_trains_the_scores_it_names(self):
        """A few steps on one batch raise the scores of its labels."""
        equal = ClassCounts(torch.full((C,), 40), torch.full((C,), 30), 100)
        for name in LOSSES:
            loss = make(name, counts=equal)
            logits, labels = batch(5, size=4)
            logits = (0.1 * logits).requires_grad_()
            before = scores_from_logits(logits, loss.activation)
            optimizer = torch.optim.SGD([logits], 1.0)
            for _ in range(100):
                optimizer.zero_grad()
                loss(logits, labels).backward()
                optimizer.step()
            after = scores_from_logits(logits, loss.activation)
            rows = (labels < C).nonzero().flatten()
            assert len(rows)
            assert (after[rows, labels[rows]] > before[rows, labels[rows]]).all(), name
            assert (after[rows, :C].argmax(dim=1) == labels[rows]).all(), name
