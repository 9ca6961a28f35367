"""The classifiers against independent loops over boxes, classes and heads."""

import copy
import math

import pytest
import torch

from tde_det.classifiers import KINDS, CausalNormClassifier, LinearClassifier
from tde_det.classifiers.heads import normalize

TAU, GAMMA = 16.0, 1 / 32
DIM, CLASSES = 16, 7
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def norm(v):
    return math.sqrt(math.fsum(a * a for a in v))


def dot(a, b):
    return math.fsum(p * q for p, q in zip(a, b))


def naive_logits(x, w, kind, num_heads, scale=None):
    """Every formula of normalized.py in Python floats; ``scale`` is LWS's, per row of w."""
    gamma = 0.0 if kind == "cosine" else GAMMA
    size = x.shape[1] // num_heads
    rows = []
    for xi in x.tolist():
        rows.append([])
        for i, wi in enumerate(w.tolist()):
            logit = 0.0
            for k in range(num_heads):
                xk, wk = (v[k * size : (k + 1) * size] for v in (xi, wi))
                if norm(xk) == 0:
                    continue
                squash = norm(xk) / (1 + norm(xk)) if kind == "capsule" else 1.0
                logit += squash * dot(wk, xk) / ((norm(wk) + gamma) * norm(xk))
            rows[-1].append(TAU / num_heads * logit * (scale[i] if scale else 1.0))
    return torch.tensor(rows, dtype=torch.float64)


def make(kind="causal_norm", num_heads=2, dim=DIM, classes=CLASSES, **kwargs):
    torch.manual_seed(0)
    return CausalNormClassifier(dim, classes, kind=kind, num_heads=num_heads, **kwargs).double()


def make_linear(**kwargs):
    torch.manual_seed(0)
    linear = torch.nn.Linear(DIM, CLASSES + 1).double()
    return LinearClassifier(copy.deepcopy(linear), CLASSES, **kwargs), linear


def features(rows, dim=DIM):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class TestFormulas:
    @EVERY_KIND
    @pytest.mark.parametrize("num_heads", [1, 2, 4])
    @pytest.mark.parametrize("background", [True, False])
    def test_equals_naive_loop(self, kind, num_heads, background):
        classifier = make(kind, num_heads, background=background)
        x = features(5)
        assert classifier.weight.shape == (CLASSES + background, DIM)
        for training in (True, False):
            expected = naive_logits(x, classifier.weight, kind, num_heads)
            actual = classifier.train(training)(x)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    @EVERY_KIND
    def test_class_scales(self, kind):
        classifier = make(kind)
        x = features(5)
        unscaled = classifier(x)
        classifier.learn_class_scale()
        assert torch.equal(classifier(x), unscaled)
        scale = torch.rand(CLASSES) + 0.5
        classifier.class_scale.data.copy_(scale)
        expected = naive_logits(x, classifier.weight, kind, 2, [*scale.tolist(), 1.0])
        torch.testing.assert_close(classifier(x), expected, rtol=0, atol=1e-12)
        classifier.reset_parameters()
        assert torch.equal(classifier.class_scale, torch.ones(CLASSES))

    def test_linear_equals_a_linear_layer(self):
        classifier, linear = make_linear()
        x = features(5)
        assert torch.equal(classifier(x), linear(x))
        assert set(classifier.state_dict()) == set(linear.state_dict())
        classifier.learn_class_scale()
        scale = torch.rand(CLASSES).double()
        classifier.class_scale.data.copy_(scale)
        weight = linear.weight * torch.cat([scale, torch.ones(1)]).unsqueeze(1)
        torch.testing.assert_close(classifier(x), x @ weight.t() + linear.bias)
        assert torch.equal(classifier.class_weight()[-1], linear.weight[-1])

    def test_prior(self):
        linear, normalised = make_linear(prior_logit=-4.6)[0], make(prior_logit=-4.6)
        expected = torch.tensor([-4.6] * CLASSES + [0.0]).double()
        assert torch.allclose(normalised(torch.zeros(1, DIM).double())[0], expected)
        assert torch.allclose(linear.bias[:CLASSES], expected[:CLASSES])
        linear.reset_parameters()
        assert torch.allclose(linear.bias, expected)
        assert set(normalised.state_dict()) == {"weight"}

    def test_gamma_zero_is_cosine(self):
        assert torch.equal(make("causal_norm", gamma=0.0)(features(4)), make("cosine")(features(4)))

    @EVERY_KIND
    def test_float32_is_close(self, kind):
        classifier, x = make(kind), features(50)
        actual = copy.deepcopy(classifier).float()(x.float())
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), classifier(x), rtol=0, atol=1e-5)

    @EVERY_KIND
    def test_gradcheck(self, kind):
        classifier = make(kind, dim=8, classes=3)
        x = features(3, 8).requires_grad_()

        def run(x, weight):
            return torch.func.functional_call(classifier, {"weight": weight}, (x,))

        weight = classifier.weight.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(run, (x, weight))


class TestOddInput:
    @EVERY_KIND
    def test_zero_features_and_weights(self, kind):
        classifier = make(kind)
        classifier.weight.data[2] = 0
        x = features(3)
        x[1] = 0
        x[2, :8] = 0  # one head alone
        logits = classifier(x.requires_grad_())
        assert torch.equal(logits[1], torch.zeros_like(logits[1]))
        assert torch.isfinite(logits).all()
        logits.square().sum().backward()
        assert x.grad.abs().max() < 1e4 and classifier.weight.grad.abs().max() < 1e4

    @pytest.mark.parametrize("make_one", [make, lambda: make_linear()[0]])
    def test_empty_batch(self, make_one):
        x = features(0).requires_grad_()
        logits = make_one()(x)
        assert logits.shape == (0, CLASSES + 1)
        logits.sum().backward()

    @EVERY_KIND
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, kind, dtype):
        classifier, x = make(kind, dim=64).float(), features(6, 64).float()
        expected = classifier(x)
        with torch.autocast("cpu", dtype=dtype):
            actual = classifier(x.to(dtype))
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.25)

    def test_half_precision_does_not_overflow(self):
        """The squares of 64 features of 2000 are more than float16 holds."""
        x = torch.full((1, 64), 2000.0, dtype=torch.float16)
        classifier = make(dim=64).float()
        torch.testing.assert_close(classifier(x), classifier(x.float()))

    def test_normalize_handles_tiny_and_huge_features(self):
        actual = normalize(torch.tensor([[1e-20, 0.0], [1e18, 1e18]]), 1)
        torch.testing.assert_close(actual[1], torch.full((2,), math.sqrt(0.5)))
        assert torch.isfinite(actual).all()

    @pytest.mark.parametrize(
        "name, value",
        [
            ("num_heads", 3),
            ("num_heads", 0),
            ("num_heads", -2),
            ("tau", 0.0),
            ("tau", math.nan),
            ("tau", math.inf),
            ("gamma", -0.1),
            ("gamma", math.nan),
            ("kind", "casual_norm"),
        ],
    )
    def test_bad_values_name_their_argument(self, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must.*{value}"):
            CausalNormClassifier(DIM, CLASSES, **{name: value})


class TestCheckpoints:
    def test_a_linear_layers_weights_without_its_bias(self, caplog):
        linear, classifier = torch.nn.Linear(DIM, CLASSES + 1), make().float()
        classifier.load_state_dict(linear.state_dict())
        assert torch.equal(classifier.weight, linear.weight)
        assert "weight comes from a linear classifier" in caplog.text
        caplog.clear()
        classifier.load_state_dict(classifier.state_dict())
        assert not caplog.text

    @pytest.mark.parametrize("make_one", [make, lambda: make_linear()[0]])
    def test_class_scales_are_taken_over(self, make_one):
        one, other = make_one(), make_one()
        one.learn_class_scale()
        one.class_scale.data.uniform_(0.5, 2)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one(features(3)), other(features(3)))

    @pytest.mark.filterwarnings("ignore:.*which is a no-op")
    def test_class_scales_are_made_where_the_weights_are(self):
        scaled, other = make(), make().to("meta")
        scaled.learn_class_scale()
        other.load_state_dict(scaled.state_dict())
        assert other.class_scale.device.type == "meta"
