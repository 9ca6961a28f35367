"""From words to adjustments, and from a checkpoint to the adjustments in it."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from test_box_predictor import CLASSES, COUNTS, DIM, make_predictor

from tde_det.adjustments import (
    ADJUSTMENTS,
    FRACAL,
    NCM,
    TDE,
    Adjustments,
    LogitAdjustment,
    NorCal,
    Step,
    TauNorm,
    parse_chains,
    saved_adjustments,
)

IMAGES = COUNTS // 2


class TestWords:
    def test_a_step(self):
        ((step,),) = parse_chains("norcal gamma=0.3 count_instances=true exempt=False")
        assert step == Step("norcal", {"gamma": 0.3, "count_instances": True, "exempt": False})
        assert parse_chains("tde") == [[Step("tde", {})]]

    @pytest.mark.parametrize(
        "text",
        ["norcal gamma=0.3 count_instances=true", "tde alpha=1.2345678 + fracal strength=1e-09"],
    )
    def test_words_of_a_chain_are_read_as_that_chain(self, text):
        (chain,) = parse_chains(text)
        assert parse_chains(" + ".join(map(str, chain))) == [chain]

    def test_a_grid(self):
        chains = parse_chains("tde alpha=0,1,1.5 + norcal gamma=0.3,0.6 exempt=True")
        assert [str(chain[0]) for chain in chains[::2]] == [
            "tde alpha=0",
            "tde alpha=1",
            "tde alpha=1.5",
        ]
        assert [chain[1].options["gamma"] for chain in chains] == 3 * [0.3, 0.6]
        assert all(chain[1].options["exempt"] is True for chain in chains)
        assert (
            len(parse_chains("tau_norm tau=0.1,0.2 exempt=true,false + ncm temperature=4,8")) == 8
        )

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "'' is no adjustment; known are tde, .*fracal"),
            ("norcall gamma=1", "'norcall' is no adjustment"),
            ("tde + ", "'' is no adjustment"),
            ("norcal 0.3", "'0.3' of 'norcal 0.3': unknown option"),
            ("norcal gama=0.3", "'gama=0.3' of 'norcal gama=0.3': unknown .* known are gamma"),
            ("norcal images=3", "'images=3' of .*: unknown option 'images'"),
            ("norcal gamma=", "'gamma=' of .*: gamma must be at least 0"),
            ("norcal gamma=0.3,", "'gamma=0.3,' of .*: gamma must be at least 0"),
            ("norcal gamma=much", "'gamma=much' of .*: gamma must be .* got 'much'"),
            ("norcal exempt=maybe", "'exempt=maybe' of .*: exempt must be True or False"),
            ("tde + norcal gamma=-1", "'gamma=-1' of 'norcal gamma=-1': gamma must .* got -1"),
            ("ncm temperature=0", "temperature must be positive, got 0"),
            ("tde alpha=1 + norcal + tde", "has an adjustment more than once"),
        ],
    )
    def test_errors(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_chains(text)

    @pytest.mark.parametrize("text", ["gamma=-1", "gamma=nan", "gamma=true", "exempt=3"])
    def test_values_are_checked(self, text):
        with pytest.raises(ValueError, match=f"{text.split('=')[0]} must be"):
            parse_chains(f"norcal {text}")

    @pytest.mark.parametrize("options", [{"gamma": -1}, {"gamma": True}, {"exempt": 3}])
    def test_values_are_checked_when_the_adjustment_is_made(self, options):
        with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
            NorCal(IMAGES, COUNTS, **options)

    def test_missing_statistics(self):
        with pytest.raises(ValueError):
            NorCal(COUNTS)

    def test_none(self):
        assert parse_chains("none") == [[]]


def statistics(name):
    """Those that an adjustment gets when it is made."""
    return {
        "norcal": (IMAGES, COUNTS),
        "logit_adjustment": (COUNTS,),
        "ncm": (torch.rand(DIM), torch.randn(CLASSES, DIM)),
        "prototypes": (torch.rand(DIM), torch.randn(CLASSES, DIM), IMAGES),
        "fracal": (COUNTS, torch.linspace(1, 2, CLASSES)),
    }.get(name, ())


def model(*adjustments, linear=False, **kwargs):
    """A box predictor. Normalised ones start with a TDE of options α = 0.5 and their own mean."""
    names = {kind: name for name, kind in ADJUSTMENTS.items()}
    torch.manual_seed(0)
    chosen = {}
    if not linear:
        chosen["tde"] = TDE(DIM, alpha=0.5)
        chosen["tde"].feature_mean.uniform_(0, 1)
    chosen.update({names[type(adjustment)]: adjustment for adjustment in adjustments})
    return make_predictor(linear, adjustments=chosen, **kwargs).eval()


def scores(predictor):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits, _, x = predictor(torch.randn(7, DIM, generator=generator))
        weight = predictor.cls_score.class_weight()
        return predictor.adjustments(x, logits, weight, predictor.activation)


@pytest.fixture
def transfer(tmp_path):
    """Save one model and load it into another, as Detectron2 does; the keys that do not fit."""

    def run(one, other):
        DetectionCheckpointer(one, str(tmp_path)).save("model")
        checkpointer = DetectionCheckpointer(other)
        problems = []
        checkpointer._log_incompatible_keys = problems.append
        checkpointer.load(str(tmp_path / "model.pth"))
        (keys,) = problems
        return [*keys.missing_keys, *keys.unexpected_keys, *keys.incorrect_shapes]

    return run


def options_of(predictor):
    return {
        name: {option: getattr(a, option) for option in a.options}
        for name, a in predictor.adjustments.items()
    }


class TestCheckpoints:
    @pytest.mark.parametrize("name", [name for name in ADJUSTMENTS if name != "tde"])
    def test_every_kind_comes_back(self, transfer, name):
        options = {
            o: 1 / 3 if type(v) is float else v for o, v in ADJUSTMENTS[name].options.items()
        }
        options["exempt"] = False
        linear = name == "tau_norm"
        one = model(ADJUSTMENTS[name](*statistics(name), **options), linear=linear)
        bare = model(linear=linear)
        assert not torch.equal(scores(one), scores(bare))
        for other in (bare, one):
            assert transfer(one, other) == []
            assert list(other.adjustments) == [name] if linear else ["tde", name]
            assert options_of(other)[name] == options
            for option, value in options_of(other)[name].items():
                assert type(value) is type(options[option])
            assert torch.equal(scores(one), scores(other))

    def test_fracal_of_sigmoid_scores_comes_back(self, transfer):
        one = model(FRACAL(*statistics("fracal")), linear=True, use_sigmoid_ce=True)
        other = model(linear=True, use_sigmoid_ce=True)
        plain = scores(other)
        assert transfer(one, other) == []
        assert torch.equal(scores(one), scores(other)) and not torch.equal(scores(other), plain)

    def test_tdes_options_are_the_models(self, transfer):
        one, other = model(TDE(DIM, alpha=3.0, exempt=False)), model()
        one.adjustments["tde"].feature_mean.uniform_(1, 2)
        assert transfer(one, other) == []
        means = [predictor.adjustments["tde"].feature_mean for predictor in (one, other)]
        assert torch.equal(*means)
        assert options_of(other)["tde"] == {"alpha": 0.5, "exempt": True}

    def test_order_is_kept(self, transfer):
        ncm, norcal = NCM(*statistics("ncm")), NorCal(IMAGES, COUNTS)
        for adjustments in ([norcal, ncm], [ncm, norcal], [norcal, LogitAdjustment(COUNTS)]):
            one, other = model(*adjustments), model()
            assert transfer(one, other) == []
            assert list(other.adjustments) == list(one.adjustments)
            assert torch.equal(scores(one), scores(other))

    def test_a_checkpoint_without_adjustments(self, transfer):
        """A model whose config names some keeps them."""
        other = model(NorCal(IMAGES, COUNTS, gamma=0.3), LogitAdjustment(COUNTS))
        assert transfer(model(), other) == []
        assert list(other.adjustments) == ["tde", "norcal", "logit_adjustment"]
        assert other.adjustments["norcal"].gamma == 0.3
        assert other.adjustments["norcal"].instances.tolist() == [500, 20, 3, 0, 1]

    def test_the_configs_come_first_with_its_options_and_the_checkpoints_statistics(self, transfer):
        norcal = NorCal(IMAGES, COUNTS, gamma=0.9, exempt=False)
        one = model(norcal, NCM(*statistics("ncm")), FRACAL(*statistics("fracal")))
        other = model(LogitAdjustment(COUNTS), NorCal(COUNTS * 2 + 1, COUNTS * 3, gamma=0.3))
        assert transfer(one, other) == []
        chain = ["tde", "logit_adjustment", "norcal", "ncm", "fracal"]
        assert list(other.adjustments) == chain
        expected = {"gamma": 0.3, "count_instances": False, "exempt": True}
        assert options_of(other)["norcal"] == expected
        assert torch.equal(other.adjustments["norcal"].images, norcal.images)
        assert torch.equal(other.adjustments["norcal"].instances, norcal.instances)

    def test_statistics_of_other_classes_are_reported(self, transfer):
        """Detectron2 drops tensors of another shape; the model keeps what it has."""
        one, other = (
            model(LogitAdjustment(torch.full((n,), 9)), num_classes=n)
            for n in (CLASSES, CLASSES + 1)
        )
        problems = [problem[0] for problem in transfer(one, other) if type(problem) is tuple]
        assert "adjustments.logit_adjustment.instances" in problems
        assert len(other.adjustments["logit_adjustment"].instances) == CLASSES + 1

    def test_a_checkpoint_with_tde_for_a_model_without(self, transfer):
        assert "adjustments.tde.feature_mean" in transfer(model(), model(linear=True))

    @pytest.mark.filterwarnings("ignore:.*which is a no-op")
    def test_adjustments_are_made_where_the_model_is(self):
        other = model().to("meta")
        one = model(NorCal(IMAGES, COUNTS), NCM(*statistics("ncm")))
        other.load_state_dict(one.state_dict())
        assert list(other.adjustments) == ["tde", "norcal", "ncm"]
        assert {b.device.type for b in other.buffers()} == {"meta"}

    def test_state_is_not_shared_with_the_checkpoint(self):
        one, other = model(NorCal(IMAGES, COUNTS)), model()
        state = one.state_dict()
        keys = list(state)
        other.load_state_dict(state)
        other.adjustments["norcal"].instances.fill_(7)
        assert one.adjustments["norcal"].instances.tolist() == [500, 20, 3, 0, 1]
        assert list(state) == keys


def test_adjustments_in_a_state_dict():
    chain = Adjustments({"tau_norm": TauNorm(tau=0.7), "norcal": NorCal(IMAGES, COUNTS)})
    state = {f"a.b.{key}": value for key, value in chain.state_dict().items()}
    saved = saved_adjustments({**state, "a.c.gamma": torch.ones(1)}, "a.b.")
    assert list(saved) == ["tau_norm", "norcal"] and saved["tau_norm"].tau == 0.7
    assert not saved_adjustments(state, "a.c.")
    del state["a.b.norcal.images"]
    state["a.b.norcal.of_a_later_version"] = torch.ones(1)
    assert list(saved_adjustments(state, "a.b.")) == ["tau_norm"]
