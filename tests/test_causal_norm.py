"""The classifier against an independent loop over boxes, classes and heads."""

import copy
import math

import pytest
import torch

from tde_det.causal_norm import (
    CLASSIFIERS,
    CausalNormClassifier,
    exempt_background,
    normalize,
)

TAU, GAMMA = 16.0, 1 / 32


def naive_logits(x, w, mean, kind, num_heads, alpha, exempt):
    """Every formula of the paper spelled out in Python floats."""
    x, w, mean = x.tolist(), w.tolist(), mean.tolist()
    gamma = 0.0 if kind == "cosine" else GAMMA
    size = len(mean) // num_heads

    def chunk(v, k):
        return v[k * size : (k + 1) * size]

    def norm(v):
        return math.sqrt(math.fsum(a * a for a in v))

    def dot(a, b):
        return math.fsum(p * q for p, q in zip(a, b))

    rows = []
    for xi in x:
        y, t = [], []
        for wi in w:
            factual, effect = 0.0, 0.0
            for k in range(num_heads):
                xk, wk, mk = chunk(xi, k), chunk(wi, k), chunk(mean, k)
                if norm(xk) == 0:
                    continue
                squash = norm(xk) / (1 + norm(xk)) if kind == "capsule" else 1.0
                factual += squash * dot(wk, xk) / ((norm(wk) + gamma) * norm(xk))
                if norm(mk) > 0:
                    d = [m / norm(mk) for m in mk]
                    effect += dot(xk, d) / norm(xk) * dot(wk, d) / (norm(wk) + gamma)
            y.append(TAU / num_heads * factual)
            t.append(TAU / num_heads * (factual - alpha * effect))
        if not exempt:
            rows.append(t)
            continue
        p = [math.exp(v) for v in y]
        q = [math.exp(v) for v in t]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        scores = [(1 - p[-1]) * qi / (1 - q[-1]) for qi in q[:-1]] + [p[-1]]
        rows.append([math.log(s) for s in scores])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, len(w))


def make(kind="causal_norm", num_heads=2, dim=16, classes=7, dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    classifier = CausalNormClassifier(dim, classes, kind=kind, num_heads=num_heads, **kwargs)
    classifier.feature_mean.copy_(torch.randn(dim))
    return classifier.to(dtype).eval()


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("exempt", [True, False])
@pytest.mark.parametrize("zero_mean", [True, False])
def test_equals_naive_loop(kind, num_heads, alpha, exempt, zero_mean):
    classifier = make(kind, num_heads, alpha=alpha, background_exempt=exempt)
    if zero_mean:
        classifier.feature_mean.zero_()
    x = torch.randn(5, 16, dtype=torch.float64)
    args = (classifier.weight, classifier.feature_mean, kind, num_heads, alpha)
    expected = naive_logits(x, *args, exempt)
    actual = classifier(x)
    if exempt:  # the loop yields log-probabilities, which are logits up to a constant per box
        actual, expected = actual.log_softmax(1), expected.log_softmax(1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    # Training is factual whatever α is.
    classifier.train()
    factual = naive_logits(x, *args[:-1], 0.0, False)
    torch.testing.assert_close(classifier(x), factual, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_float32_is_close(kind):
    classifier = make(kind)
    x = torch.randn(50, 16, dtype=torch.float64)
    expected = classifier(x)
    actual = copy.deepcopy(classifier).float()(x.float())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("exempt", [True, False])
def test_factual_limits_are_exact(kind, exempt):
    classifier = make(kind, dtype=torch.float32, background_exempt=exempt)
    x = torch.randn(9, 16)
    factual = classifier.train()(x)
    classifier.eval()
    assert not torch.equal(classifier(x), factual)
    classifier.alpha = 0.0
    assert torch.equal(classifier(x), factual)
    classifier.alpha = 1.5
    classifier.feature_mean.zero_()
    assert torch.equal(classifier(x), factual)


def test_gamma_zero_is_cosine():
    x = torch.randn(4, 16, dtype=torch.float64)
    assert torch.equal(make("causal_norm", gamma=0.0)(x), make("cosine")(x))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_exemption_keeps_background_and_sums_to_one(kind):
    classifier = make(kind)
    x = torch.randn(20, 16, dtype=torch.float64)
    probs = classifier(x).softmax(1)
    torch.testing.assert_close(probs.sum(1), torch.ones(20, dtype=torch.float64))
    factual = classifier.train()(x).softmax(1)
    torch.testing.assert_close(probs[:, -1], factual[:, -1], rtol=0, atol=1e-14)
    assert (probs - factual).abs().max() > 1e-3


def test_exemption_survives_extreme_logits():
    y = torch.tensor([[500.0, -500.0, 0.0], [-500.0, -500.0, 500.0]])
    t = torch.tensor([[-500.0, 500.0, 0.0], [500.0, -500.0, -500.0]])
    exempted = exempt_background(y, t)
    assert torch.isfinite(exempted).all()
    torch.testing.assert_close(exempted.softmax(1)[:, -1], y.softmax(1)[:, -1])


@pytest.mark.parametrize("alpha", [0.5, 1.5, 3.0, 30.0])  # the last is beyond its bound
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_without_gradients_in_fewer_passes(kind, alpha):
    """The way that inference takes gives what the one with gradients does, and its softmax."""
    classifier = make(kind)
    classifier.alpha = alpha
    x = torch.randn(20, 16, dtype=torch.float64) * torch.logspace(-3, 3, 20).unsqueeze(1)
    with torch.no_grad():
        fast = classifier(x)
    torch.testing.assert_close(fast, classifier(x).detach(), rtol=0, atol=1e-11)
    assert hasattr(fast, "probabilities") == (alpha < 10)
    probs = getattr(fast, "probabilities", fast.softmax(1))
    torch.testing.assert_close(probs, fast.softmax(1), rtol=1e-12, atol=0)
    with torch.no_grad():
        assert classifier(x[:0]).shape == (0, 8)
        assert not hasattr(fast + 0, "probabilities")


def test_autocast_halves_the_product_alone():
    classifier = make().float()
    x = torch.randn(20, 16)
    with torch.no_grad():
        exact = classifier(x).probabilities
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = classifier(x)
    assert logits.dtype == logits.probabilities.dtype == torch.float32
    torch.testing.assert_close(logits.probabilities, logits.softmax(1))
    assert 0 < (logits.probabilities - exact).abs().max() < 0.05
    torch.testing.assert_close(logits.probabilities.sum(1), torch.ones(20))


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(kind, training):
    classifier = make(kind, dim=8, classes=3).train(training)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def run(x, weight):
        return torch.func.functional_call(classifier, {"weight": weight}, (x,))

    weight = classifier.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, weight))


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("training", [True, False])
def test_zero_features_and_weights(kind, training):
    classifier = make(kind).train(training)
    classifier.weight.data[2] = 0
    x = torch.randn(3, 16, dtype=torch.float64)
    x[1] = 0
    x[2, :8] = 0  # one head alone
    x.requires_grad_()
    logits = classifier(x)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    assert x.grad.abs().max() < 1e4 and classifier.weight.grad.abs().max() < 1e4
    if training:
        assert torch.equal(logits[1], torch.zeros_like(logits[1]))


def test_empty_batch():
    classifier = make()
    for training in (True, False):
        x = torch.randn(0, 16, dtype=torch.float64, requires_grad=True)
        logits = classifier.train(training)(x)
        assert logits.shape == (0, 8)
        logits.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast(dtype, training):
    classifier = make(dtype=torch.float32, dim=64).train(training)
    x = torch.randn(6, 64)
    expected = classifier(x)
    with torch.autocast("cpu", dtype=dtype):
        actual = classifier(x.to(dtype))
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.25)


def test_normalize_handles_tiny_and_huge_features():
    x = torch.tensor([[1e-20, 0.0], [1e18, 1e18]])
    assert torch.isfinite(normalize(x, 1)).all()


class TestPreparedWeights:
    """What inference caches must follow every change."""

    def setup_method(self):
        self.classifier = make()
        self.x = torch.randn(4, 16, dtype=torch.float64)

    def fresh(self):
        with torch.no_grad():
            return copy.deepcopy(self.classifier).train().eval()(self.x)

    def test_weights_are_normalised_once(self, monkeypatch):
        calls = []
        original = self.classifier._prepare
        monkeypatch.setattr(self.classifier, "_prepare", lambda: calls.append(1) or original())
        with torch.no_grad():
            for _ in range(3):
                self.classifier(self.x)
        assert len(calls) == 1

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c.weight.add_(1),
            lambda c: c.feature_mean.add_(1),
            lambda c: c.load_state_dict({k: v + 1 for k, v in c.state_dict().items()}),
            lambda c: setattr(c, "alpha", 3.0),
            lambda c: setattr(c, "background_exempt", False),
            lambda c: setattr(c, "tau", 8.0),
            lambda c: setattr(c, "gamma", 1.0),
            lambda c: setattr(c.weight, "data", c.weight.data * 2 + 1),
            lambda c: (c.weight.data.mul_(2).add_(1), c.eval()),
        ],
    )
    def test_follows(self, change):
        with torch.no_grad():
            before = self.classifier(self.x)
            change(self.classifier)
            after = self.classifier(self.x)
        assert not torch.allclose(before, after)
        assert torch.equal(after, self.fresh())

    def test_inference_mode_leaves_gradients_possible(self):
        with torch.inference_mode():
            expected = self.classifier(self.x)
        self.classifier.weight.requires_grad_(False)
        x = self.x.clone().requires_grad_()
        self.classifier(x).sum().backward()
        assert torch.isfinite(x.grad).all()
        torch.testing.assert_close(self.classifier(self.x), expected)


@pytest.mark.parametrize(
    "kwargs, key",
    [
        ({"num_heads": 3}, "NUM_HEADS"),
        ({"num_heads": 0}, "NUM_HEADS"),
        ({"num_heads": -2}, "NUM_HEADS"),
        ({"tau": 0.0}, "TAU"),
        ({"tau": float("nan")}, "TAU"),
        ({"gamma": -0.1}, "GAMMA"),
        ({"mu": 1.0}, "MU"),
        ({"mu": -0.1}, "MU"),
        ({"alpha": -1.0}, "ALPHA"),
        ({"alpha": float("nan")}, "ALPHA"),
        ({"kind": "casual_norm"}, "CLASSIFIER"),
    ],
)
def test_bad_values_name_their_key(kwargs, key):
    with pytest.raises(ValueError, match=f"MODEL.TDE.{key}"):
        CausalNormClassifier(16, 7, **kwargs)


def test_auto_alpha():
    classifier = make(auto_alpha=True, dtype=torch.float32)
    x = torch.randn(4, 16)
    with pytest.raises(ValueError, match="AUTO_ALPHA"):
        classifier(x)
    classifier.foreground_cosine.copy_(torch.tensor([3.0, 4.0]))  # mean cosine 0.75
    assert classifier.effective_alpha() == pytest.approx(4 / 3)
    fixed = make(alpha=4 / 3, dtype=torch.float32)
    torch.testing.assert_close(classifier(x), fixed(x))
    classifier.alpha = 0.0
    assert torch.equal(classifier(x), classifier.train()(x))


def test_linear_checkpoint(caplog):
    linear = torch.nn.Linear(16, 8)
    classifier = make(dtype=torch.float32)
    classifier.feature_mean.zero_()
    classifier.load_state_dict(linear.state_dict())
    assert torch.equal(classifier.weight, linear.weight)
    assert "Dropped: bias" in caplog.text and "feature_mean" in caplog.text
    # Our own checkpoints load silently, and lacking a buffer is still an error.
    caplog.clear()
    classifier.load_state_dict(classifier.state_dict())
    assert not caplog.text
    with pytest.raises(RuntimeError, match="feature_mean"):
        classifier.load_state_dict({"weight": linear.weight})
