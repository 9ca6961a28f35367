"""Every adjustment against a loop over boxes and classes, at its limits, and on odd input."""

import math

import naive_adjustments as naive
import numpy as np
import pytest
import torch

from tde_det.adjustments import (
    ADJUSTMENTS,
    FRACAL,
    NCM,
    TDE,
    Adjustments,
    LogitAdjustment,
    NorCal,
    exempt_background,
)
from tde_det.adjustments.fracal import box_counting_dimension, box_counting_dimensions
from tde_det.classifiers import KINDS, CausalNormClassifier
from tde_det.foreground_statistics import ForegroundStatistics

N, C, D = 11, 6, 8
COUNTS = torch.tensor([0, 3, 900, 20, 7, 1])  # a class never seen counts as one seen once
IMAGES = torch.tensor([0, 2, 80, 19, 1, 1])
PHI = torch.tensor([1.0, 1.25, 1.875, 1.5, 1.0, 1.0])
CENTER = torch.linspace(-0.5, 0.5, D, dtype=torch.float64)
EXEMPT = pytest.mark.parametrize("exempt", [True, False])
EVERY = pytest.mark.parametrize("name", ADJUSTMENTS)


def random(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def head():
    """Features, logits and weights of a linear classifier whose class norms differ."""
    x, weight = random(N, D), random(C + 1, D, seed=4) * torch.linspace(0.2, 2, C + 1)[:, None]
    return x, x @ weight.t() + random(C + 1, seed=5), weight


def make(name, exempt=True, **options):
    """An adjustment with statistics of its own."""
    means = random(C, D, seed=6)
    means[2] = math.nan
    statistics = {
        "tde": (D, 2),
        "ncm": (CENTER, means),
        "prototypes": (CENTER, means, IMAGES),
        "norcal": (IMAGES, COUNTS),
        "logit_adjustment": (COUNTS,),
        "fracal": (COUNTS, PHI),
    }
    adjustment = ADJUSTMENTS[name](*statistics.get(name, ()), **options, exempt=exempt).double()
    if name == "tde":
        adjustment.feature_mean.copy_(random(D, seed=7))
    return adjustment


def expected_scores(name, exempt, x, y, w, count_instances=False, **options):
    """By the loops; ``options`` must be the adjustment's."""
    counts, phi = COUNTS.tolist(), PHI.tolist()
    means = [None if i == 2 else row for i, row in enumerate(random(C, D, seed=6).tolist())]
    arguments = {
        "tde": (random(D, seed=7).tolist(), 2),
        "ncm": (CENTER.tolist(), means),
        "prototypes": (CENTER.tolist(), means, IMAGES.tolist()),
        "norcal": (counts if count_instances else IMAGES.tolist(),),
        "logit_adjustment": (counts,),
        "fracal": (counts, phi),
    }.get(name, ())
    if name == "tau_norm":
        options["with_background"] = not exempt
    rows = []
    for x_n, y_n in zip(x.tolist(), y.tolist()):
        scores = getattr(naive, name)(x_n, y_n, w.tolist(), *arguments, **options)
        rows.append(naive.exempt(y_n, scores) if exempt else scores)
    return torch.tensor(rows, dtype=torch.float64)


def check(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


FORMULAS = [
    *(("tde", {"alpha": alpha}) for alpha in (0.0, 0.5, 1.5, 3.0, 30.0)),
    *(("tau_norm", {"tau": tau}) for tau in (0.0, 0.3, 1.0, 2.0)),
    *(("ncm", {"temperature": temperature}) for temperature in (0.5, 16.0)),
    *(
        ("prototypes", {"strength": strength, "prior": prior})
        for strength, prior in ((0.0, 10.0), (8.0, 0.0), (8.0, 9.0))
    ),
    *(("norcal", {"gamma": gamma}) for gamma in (0.0, 0.7, 2.0)),
    ("norcal", {"gamma": 0.7, "count_instances": True}),
    *(("logit_adjustment", {"tau": tau}) for tau in (0.0, 1.0, 1.5)),
    *(("fracal", {"strength": strength}) for strength in (0.0, 1.0, 2.0)),
]


class TestFormulas:
    @EXEMPT
    @pytest.mark.parametrize("name, options", FORMULAS)
    def test_equals_naive_loop(self, head, name, options, exempt):
        x, y, weight = head
        actual = make(name, exempt, **options)(x, y, weight).softmax(1)
        check(actual, expected_scores(name, exempt, x, y, weight, **options))
        torch.testing.assert_close(actual.sum(1), torch.ones(N, dtype=torch.float64))
        if exempt:
            check(actual[:, -1], y.softmax(1)[:, -1])

    @EXEMPT
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("num_heads", [1, 2, 4])
    def test_tde_of_the_classifiers(self, kind, num_heads, exempt):
        """The weights that a classifier hands over have its τ/K and its norms in them."""
        torch.manual_seed(0)
        classifier = CausalNormClassifier(D, C, kind=kind, num_heads=num_heads).double()
        x, mean, gamma = random(N, D), random(D, seed=7), 0.0 if kind == "cosine" else 1 / 32
        mean[: D // 4] = 0
        y = classifier(x)
        tde = TDE(D, num_heads, alpha=1.5, exempt=exempt).double()
        tde.feature_mean.copy_(mean)
        weight = []
        for row in classifier.weight.tolist():
            weight.append([])
            for k in range(num_heads):
                part = row[k * D // num_heads : (k + 1) * D // num_heads]
                weight[-1] += [16 / num_heads * v / (naive.norm(part) + gamma) for v in part]
        rows = []
        for x_n, y_n in zip(x.tolist(), y.tolist()):
            scores = naive.tde(x_n, y_n, weight, mean.tolist(), num_heads, 1.5)
            rows.append(naive.exempt(y_n, scores) if exempt else scores)
        actual = tde(x, y, classifier.class_weight()).softmax(1)
        check(actual, torch.tensor(rows, dtype=torch.float64))

    @pytest.mark.parametrize(
        "name, options",
        [
            *(("fracal", {"strength": strength}) for strength in (0.0, 1.0, 2.0)),
            *(("norcal", {"gamma": gamma}) for gamma in (0.0, 0.6, 1.5)),
            *(("logit_adjustment", {"tau": tau}) for tau in (0.0, 1.0)),
            *(("tau_norm", {"tau": tau}) for tau in (0.0, 0.5, 1.0)),
        ],
    )
    def test_of_sigmoid_scores(self, head, name, options):
        """Every class for itself; to exempt the background would mean nothing."""
        x, y, weight = head
        statistics = {
            "fracal": (COUNTS.tolist(), PHI.tolist()),
            "norcal": (IMAGES.tolist(),),
            "logit_adjustment": (COUNTS.tolist(),),
        }.get(name, ())
        loop = getattr(naive, f"{name}_sigmoid")
        rows = [
            loop(x_n, y_n, weight.tolist(), *statistics, **options)
            for x_n, y_n in zip(x.tolist(), y.tolist())
        ]
        for exempt in (True, False):
            actual = make(name, exempt, **options)(x, y, weight, "sigmoid").sigmoid()[:, :-1]
            check(actual, torch.tensor(rows, dtype=torch.float64))

    def test_which_take_sigmoid_scores(self):
        taking = {name for name in ADJUSTMENTS if "sigmoid" in ADJUSTMENTS[name].activations}
        assert taking == {"fracal", "norcal", "logit_adjustment", "tau_norm"}

    def test_chains_apply_one_after_the_other(self, head):
        x, y, weight = head
        for names in (["tde", "norcal"], ["ncm", "norcal", "tde"], ["norcal", "ncm"]):
            expected = y
            for name in names:
                expected = expected_scores(
                    name, True, x, expected, weight, **dict([FORMULAS_OF[name]])
                ).log()
            chain = Adjustments({name: make(name) for name in names})
            for name, adjustment in chain.items():
                setattr(adjustment, *FORMULAS_OF[name])
            check(chain(x, y, weight).softmax(1), expected.exp())
            check(chain(x, y, weight).softmax(1)[:, -1], y.softmax(1)[:, -1])
        assert torch.equal(Adjustments({})(x, y, weight), y)

    @EXEMPT
    @EVERY
    def test_gradcheck(self, head, name, exempt):
        x, y, weight = (tensor[:4].clone().requires_grad_() for tensor in head)
        adjustment = make(name, exempt)
        if name == "ncm":  # a score of 0 has no logit whose difference could be taken
            adjustment.class_means[2] = 1.0
        weight = head[2].clone().requires_grad_()
        assert torch.autograd.gradcheck(adjustment, (x, y, weight), fast_mode=True)


FORMULAS_OF = {"tde": ("alpha", 1.5), "norcal": ("gamma", 0.3), "ncm": ("temperature", 5.0)}


class TestLimits:
    @EXEMPT
    @pytest.mark.parametrize(
        "name, option",
        [("tde", "alpha"), ("tau_norm", "tau"), ("norcal", "gamma"), ("logit_adjustment", "tau")],
    )
    def test_0_changes_nothing(self, head, name, option, exempt):
        check(make(name, exempt, **{option: 0.0})(*head), head[1])

    def test_fracals_strength_0_leaves_the_frequencies(self, head):
        x, y, weight = head
        shift = torch.tensor([*naive.fracal_shifts(COUNTS.tolist()), 0.0])
        actual = make("fracal", False, strength=0.0)(x, y, weight)
        torch.testing.assert_close(actual, y + shift, rtol=0, atol=1e-6)

    @EXEMPT
    def test_tde_without_a_mean_changes_nothing(self, head, exempt):
        check(TDE(D, exempt=exempt).double()(*head), head[1])

    def test_equal_classes_change_nothing_under_exemption(self, head):
        equal = torch.full((C,), 40)
        for adjustment in (
            NorCal(equal, equal),
            LogitAdjustment(equal),
            FRACAL(equal, torch.full((C,), 1.5)),
        ):
            check(adjustment.double()(*head), head[1])
        check(LogitAdjustment(equal, exempt=False)(*head), head[1])


class TestOddInput:
    @EXEMPT
    @EVERY
    def test_zero_and_huge_features(self, head, name, exempt):
        _, y, weight = (tensor.float() for tensor in head)
        x = torch.zeros(N, D)
        x[1], x[2], x[3, : D // 2] = 1e18, -1e18, 1.0
        adjustment = make(name, exempt).float()
        if name == "tau_norm":
            weight[0] = 0
        scores = adjustment(x, y, weight).softmax(1)
        # Features this large stand for logits this large, of which one class gets it all.
        keep = slice(0, None) if name != "tau_norm" else [0, *range(3, N)]
        assert torch.isfinite(scores[keep]).all()
        torch.testing.assert_close(scores[keep].sum(1), torch.ones(N)[keep])
        if exempt:
            torch.testing.assert_close(scores[keep, -1], y.softmax(1)[keep, -1])

    def test_extreme_logits_keep_the_background(self):
        y = torch.tensor([[500.0, -500.0, 0.0], [-500.0, -500.0, 500.0]])
        t = torch.tensor([[-500.0, 500.0, 0.0], [500.0, -500.0, -500.0]])
        exempted = exempt_background(y, t)
        assert torch.isfinite(exempted).all()
        torch.testing.assert_close(exempted.softmax(1)[:, -1], y.softmax(1)[:, -1])
        assert torch.equal(exempted[:, :-1].argmax(1), torch.tensor([1, 0]))

    @EVERY
    def test_extreme_logits(self, head, name):
        x, y, weight = (tensor.float() for tensor in head)
        y = 1000 * y.sign()
        scores = make(name).float()(x, y, weight).softmax(1)
        assert torch.isfinite(scores).all()
        torch.testing.assert_close(scores[:, -1], y.softmax(1)[:, -1])

    def test_extreme_sigmoid_logits(self):
        fracal = FRACAL(COUNTS, PHI)
        y = torch.tensor([[-500.0, -30.0, 0.0, 30.0, 500.0, 0.0, 0.0]])
        logits = fracal(torch.zeros(1, D), y, torch.zeros(C + 1, D), "sigmoid")
        scores = logits.sigmoid()
        assert not scores.isnan().any() and (scores[0, :2] < 1e-20).all()
        assert (scores[0, 3:5] > 1 - 1e-6).all()
        assert logits[0, 0] < logits[0, 1] < logits[0, 2] < logits[0, 3]

    @EVERY
    def test_without_background(self, head, name):
        """Image classification: C logits in, C logits out, as if the background had no score."""
        x, y, weight = head[0], head[1][:, :-1], head[2][:-1]
        actual = make(name, False)(x, y, weight)
        assert actual.shape == (N, C)
        bottom = torch.full((N, 1), -math.inf).double()
        filled = make(name, False)(x, torch.cat([y, bottom], dim=1), head[2])
        check(actual.softmax(1), filled.softmax(1)[:, :-1])
        assert not torch.allclose(actual.softmax(1), y.softmax(1), atol=1e-3)

    @EXEMPT
    @EVERY
    def test_empty_batch(self, head, name, exempt):
        x, y, weight = head
        assert make(name, exempt)(x[:0], y[:0], weight).shape == (0, C + 1)

    @EXEMPT
    @EVERY
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, head, name, exempt, dtype):
        """Logits of autocast come out in float32, close to the exact ones."""
        x, y, weight = (tensor.float() for tensor in head)
        adjustment = make(name, exempt).float()
        expected = adjustment(x, y, weight)
        with torch.autocast("cpu", dtype=dtype):
            actual = adjustment(x.to(dtype), y.to(dtype), weight)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.softmax(1), expected.softmax(1), rtol=0, atol=0.05)


class TestOptions:
    @pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "much"])
    @pytest.mark.parametrize(
        "name, option",
        [(name, o) for name, kind in ADJUSTMENTS.items() for o in kind.options if o != "exempt"],
    )
    def test_ranges(self, name, option, value):
        adjustment = make(name)
        with pytest.raises(ValueError, match=rf"^{option} must be .*got '?{value}"):
            adjustment.with_options(**{option: value})

    def test_temperature_is_positive(self):
        for value in (0.0, -1.0):
            with pytest.raises(ValueError, match=f"temperature must be.*got {value:g}"):
                make("ncm", temperature=value)

    @EVERY
    def test_with_options_leaves_the_original_alone(self, head, name):
        option = next(o for o in ADJUSTMENTS[name].options)
        original = make(name)
        before, value = original(*head), getattr(original, option)
        other = original.with_options(**{option: 0.25}, exempt=False)
        assert getattr(other, option) == 0.25 and other.exempt is False
        assert getattr(original, option) == value and original.exempt is True
        for buffer in other.buffers():
            buffer.fill_(1)
        assert torch.equal(original(*head), before)
        with pytest.raises(ValueError, match="'gama'.*exempt"):
            original.with_options(gama=1.0)

    @EVERY
    def test_truth_values(self, name):
        with pytest.raises(ValueError, match="^exempt must be True or False, got 0.5"):
            make(name).with_options(exempt=0.5)


def centers(sizes=(0, 2, 3, 4, 200, 5000)):
    """Classes and box centres, shuffled; the edges of the image are among them."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    classes = classes[torch.randperm(len(classes), generator=generator)]
    points = torch.rand(len(classes), 2, generator=generator, dtype=torch.float64)
    points[classes == 4] *= 0.1  # within a corner
    points[classes == 5] = points[classes == 5].round(decimals=2)
    assert (points == 1).any() and (points == 0).any()
    return classes, points


class TestStatistics:
    def test_box_counting_dimension(self):
        classes, points = centers()
        dimensions = box_counting_dimensions(*map(torch.as_tensor, (classes, points)), C)
        expected = [naive.box_counting_dimension(points[classes == i].tolist()) for i in range(6)]
        torch.testing.assert_close(dimensions, torch.tensor(expected))
        assert expected[:3] == [1, 1, 1] and min(expected) == 1 and max(expected) > 1.1

    @pytest.mark.parametrize("number", [1, 3, 4, 8, 9, 4095, 4096, 9000])
    def test_box_counting_dimension_of_a_line_and_a_plane(self, number):
        line = np.linspace(0, 1, number)
        plane = np.random.default_rng(0).random((number, 2))
        for points in (np.stack([line, line], axis=1), plane):
            actual = box_counting_dimension(points)
            assert actual == pytest.approx(naive.box_counting_dimension(points.tolist()), abs=1e-9)
        assert box_counting_dimension(np.stack([line, line], axis=1)) == pytest.approx(1)

    def test_ncm(self, head):
        seen, labels = random(200, D, seed=8), torch.arange(200) % (C + 1)
        labels[labels == 2] = C  # class 2 has no box
        statistics = ForegroundStatistics(C, D)
        for part in (slice(0, 90), slice(90, 200)):
            statistics.add(seen[part], labels[part])
        center = seen[labels < C].mean(dim=0)
        means = torch.stack([seen[labels == i].mean(dim=0) - center for i in range(C)])
        ncm = NCM(statistics.mean(), statistics.centered_class_means(), temperature=5.0)
        torch.testing.assert_close(ncm.center, center)
        torch.testing.assert_close(ncm.class_means, means, equal_nan=True)
        assert ncm(*head).softmax(1)[:, 2].max() == 0

    def test_of_one_pass(self):
        """The mean and the mean cosine to its direction, box by box."""
        x, labels = random(300, D).abs().float(), torch.arange(300) % (C + 1)
        x[5] = math.inf
        statistics = ForegroundStatistics(C, D, num_heads=2)
        for part in torch.arange(300).split(64):
            statistics.add(x[part], labels[part])
        kept = [n for n in range(300) if labels[n] < C and n != 5]
        mean = sum(x[n].double() for n in kept) / len(kept)
        cosine = 0.0
        for n in kept:
            for half in (slice(0, 4), slice(4, 8)):
                a, b = x[n, half].double(), mean[half]
                cosine += float(a @ b / a.norm() / b.norm()) / 2 / len(kept)
        torch.testing.assert_close(statistics.mean(), mean, rtol=0, atol=1e-10)
        assert statistics.mean_cosine(statistics.mean()) == pytest.approx(cosine, abs=1e-10)
        with pytest.raises(ValueError, match="no foreground box"):
            ForegroundStatistics(C, D).mean()
