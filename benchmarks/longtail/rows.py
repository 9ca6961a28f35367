"""The rows of the benchmark: what is trained, and how every trained model is adjusted."""

from typing import Dict, List, NamedTuple, Tuple

from tde_det.adjustments import parse_chains
from tde_det.evaluation.recommend import FAMILIES
from tde_det.evaluation.sweep import title_of


class Training(NamedTuple):
    """One way to train.

    Attributes:
        name: of its folder and of its rows in results.csv.
        title: of its rows in the page.
        opts: keys and values that differ from the shape's config.
        start: the training whose model a decoupled one starts from.
        adjust: families of adjustments that its model is evaluated with, beside none.
    """

    name: str
    title: str
    opts: Tuple[str, ...] = ()
    start: str = ""
    adjust: Tuple[str, ...] = ()


def _names(text: str) -> str:
    """``"tde alpha=1,2 + norcal gamma=0.1"`` → ``"tde + norcal"``."""
    return " + ".join(step.split()[0] for step in text.split("+"))


# Chains of two take fewer values of each option than an adjustment alone. The first changes what
# the classifier says, the second corrects for class counts.
FIRST = (
    "tde alpha=0.5,1,1.5",
    "tau_norm tau=0.25,0.5",
    "ncm temperature=16,32",
    "prototypes strength=4,8,16",
)
SECOND = ("norcal gamma=0.2,0.4,0.8", "logit_adjustment tau=0.2,0.4,0.8", "fracal strength=0.5,1,2")
# By name, the settings that are tried on the tuning half.
GRIDS: Dict[str, str] = {_names(text): text for text in FAMILIES if "+" not in text}
NOT_EXEMPT = "tde, not exempt"
GRIDS[NOT_EXEMPT] = "tde alpha=0.25,0.5,1,1.5 exempt=false"
GRIDS.update({_names(f"{a}+{b}"): f"{a} + {b}" for a in FIRST for b in SECOND})

ON_ANY = tuple(name for name in GRIDS if name != "none" and name[:3] not in ("tde", "tau"))
ON_LINEAR = (*(name for name in GRIDS if name.startswith("tau_norm")), *ON_ANY)
ON_NORMALIZED = (*(name for name in GRIDS if name.startswith("tde")), *ON_ANY)

RFS = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
BALANCED = ("DATALOADER.SAMPLER_TRAIN", "ClassBalancedSampler")


def _normalized(kind: str, heads: int = 2) -> Tuple[str, ...]:
    return ("MODEL.TDE.CLASSIFIER", kind, "MODEL.TDE.NUM_HEADS", str(heads))


def _loss(name: str) -> Tuple[str, ...]:
    return ("MODEL.LONG_TAIL.LOSS", name)


DECONFOUNDED = _normalized("causal_norm")
SOME = ("tde", "prototypes", "norcal", "prototypes + norcal")
# In the order of work: what settles most comes first.
TRAININGS: Tuple[Training, ...] = (
    Training("linear", "linear", adjust=ON_LINEAR),
    Training("deconfounded", "de-confounded", DECONFOUNDED, adjust=ON_NORMALIZED),
    Training("rfs", "RFS", RFS, adjust=ON_LINEAR),
    Training("balanced_softmax", "balanced softmax", _loss("balanced_softmax")),
    Training("seesaw", "Seesaw", _loss("seesaw")),
    Training("cosine", "cosine", _normalized("cosine"), adjust=("tde",)),
    Training("capsule", "capsule", _normalized("capsule"), adjust=("tde",)),
    Training("rfs_deconfounded", "RFS, de-confounded", (*RFS, *DECONFOUNDED), adjust=SOME),
    Training(
        "deconfounded_crt",
        "de-confounded, cRT",
        (*DECONFOUNDED, *BALANCED, "MODEL.LONG_TAIL.DECOUPLE", "crt"),
        start="deconfounded",
        adjust=SOME,
    ),
    Training("federated", "federated", _loss("federated")),
    Training("eqlv2", "EQL v2", _loss("eqlv2")),
    Training("k1", "de-confounded, K = 1", _normalized("causal_norm", 1), adjust=("tde",)),
    Training("k4", "de-confounded, K = 4", _normalized("causal_norm", 4), adjust=("tde",)),
    Training("gol", "GOL", _loss("gol")),
    Training("ecm", "ECM", _loss("ecm")),
    Training("focal", "Focal (softmax)", _loss("focal")),
    Training("ldam", "LDAM", _loss("ldam")),
    Training("crt", "cRT", (*BALANCED, "MODEL.LONG_TAIL.DECOUPLE", "crt"), start="linear"),
    Training("lws", "LWS", (*BALANCED, "MODEL.LONG_TAIL.DECOUPLE", "lws"), start="linear"),
)
BY_NAME = {training.name: training for training in TRAININGS}
MAIN = ("linear", "deconfounded")  # these get three seeds, and those of the five best rows
SEEDS = (1, 2, 3)
# Rows whose AP of every class is measured.
BY_CLASS = (("linear", "none"), ("deconfounded", "none"), ("deconfounded", "tde"))

ADJUSTMENT_TITLES = {
    "tde": "TDE",
    NOT_EXEMPT: "TDE, not exempt",
    "tau_norm": "τ-normalisation",
    "ncm": "NCM",
    "prototypes": "prototypes",
    "norcal": "NorCal",
    "logit_adjustment": "logit adjustment",
    "fracal": "FRACAL",
}


def rows() -> List[Tuple[str, str]]:
    """All rows: a training's name and a family's."""
    return [(t.name, family) for t in TRAININGS for family in ("none", *t.adjust)]


def row_title(training: str, family: str) -> str:
    """A row in the page's words."""
    title = BY_NAME[training].title
    if family == "none":
        return title + (" (α = 0)" if "MODEL.TDE.CLASSIFIER" in BY_NAME[training].opts else "")
    steps = [family] if family in ADJUSTMENT_TITLES else family.split(" + ")
    return " + ".join([title, *(ADJUSTMENT_TITLES[step] for step in steps)])


def settings(family: str) -> List[str]:
    """The family's settings, as tools/sweep.py titles them."""
    return [title_of(chain) for chain in parse_chains(GRIDS[family])]
