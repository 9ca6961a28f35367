"""tools/train_classifier.py on tiny data."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from test_image_data import write_cifar, write_images

from tde_det.classification.methods import RETRAINING
from tde_det.classification.model import CLASSIFIER_NAMES
from tde_det.losses import LOSSES


@pytest.fixture
def command_line(monkeypatch):
    path = os.path.join(REPOSITORY, "tools/train_classifier.py")
    spec = importlib.util.spec_from_file_location("train_classifier", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_classifier.py", *map(str, arguments)])
        tool.main()

    return call


TINY = (
    *("--classes", 4, "--largest-class", 24, "--imbalance-factor", 8, "--test-per-class", 3),
    *("--arch", "resnet8", "--epochs", 1, "--retrain-epochs", 1, "--batch-size", 16),
)


ADJUST = ("--adjust", "tde alpha=1", "tde alpha=2", "tau_norm", "ncm")


def test_command_line(command_line, tmp_path, capsys):
    command_line(*TINY, "--seeds", 0, 5, "--output", tmp_path, "--jobs", 2, *ADJUST)
    printed = capsys.readouterr().out
    assert "4 classes: 0 many (> 100 training images), 1 medium, 3 few (< 20)" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = list(metrics["summary"])
    assert rows[0] == "linear" and rows[-1] == "causal_norm + LWS" and len(rows) == 11
    assert sorted((r["seed"], r["classifier"]) for r in metrics["runs"]) == [
        (seed, name) for seed in (0, 5) for name in ("causal_norm", "linear")
    ]
    for row, values in metrics["summary"].items():
        both = [r["accuracy"][row]["all"] for r in metrics["runs"] if row in r["accuracy"]]
        assert values["all"]["mean"] == pytest.approx(sum(both) / 2) and len(both) == 2
        assert values["many"]["mean"] is None
    assert (tmp_path / "table.md").read_text().strip() in printed
    assert {p.name for p in tmp_path.glob("*.pth")} == {
        f"model_{name}_seed{seed}.pth" for seed in (0, 5) for name in ("causal_norm", "linear")
    }


def test_results_are_not_overwritten(command_line, tmp_path, monkeypatch):
    tiny = (*TINY, "--classifier", "linear", "--adjust", "ncm", "--retrain")
    tiny += ("--seeds", 0, "--jobs", 1)
    monkeypatch.chdir(tmp_path)
    command_line(*tiny)
    first = (tmp_path / "output/classifier/metrics.json").read_bytes()
    command_line(*tiny, "--seeds", 1)
    assert (tmp_path / "output/classifier/metrics.json").read_bytes() == first
    assert json.loads((tmp_path / "output/classifier_2/metrics.json").read_text())["runs"]
    with pytest.raises(SystemExit, match="holds the results of another run"):
        command_line(*tiny, "--output", "output/classifier")


def test_command_line_on_files(command_line, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, *_: os.path.exists(path)
    )
    for split in ("train", "val"):
        for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
            write_images(tmp_path / split / name, 6, colour)
    options = ("--image-size", 16, "--arch", "resnet8", "--epochs", 1, "--seeds", 0, "--jobs", 1)
    loss = ("--loss", "seesaw", "--loss-options", "p=0.5", "q=1", "--retrain")
    loss += ("--adjust", "tde", "tau_norm")
    command_line(
        "--data", "folder", "--root", tmp_path, *options, *loss, "--output", tmp_path / "a"
    )
    printed = capsys.readouterr().out
    assert "tested on val/" in printed and "causal_norm + tde" in printed
    assert "left out for causal_norm: tau_norm" in printed and "ncm" not in printed
    write_cifar(tmp_path, 10)
    command_line(
        *("--data", "cifar10", "--root", tmp_path, "--imbalance-factor", 3, "--stem-stride", 2),
        *("--classifier", "capsule", "--loss", "gol", "--adjust", "ncm", *options[2:]),
        *("--output", tmp_path / "b"),
    )
    assert "capsule + ncm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--imbalance-factor", 100], "imbalance_factor 100 leaves class 3 without an image"),
        (["--loss", "seesaw", "--loss-options", "z=1"], "unexpected keyword argument 'z'"),
        (["--loss", "sigmoid_focal", "--adjust", "tde"], "trains sigmoid scores"),
        (["--classifier", "linear", "--adjust", "tde"], "linear is not"),
        (["--adjust", "tde alpha=-1"], "alpha must be at least 0, got -1"),
        (["--adjust", "tde beta=1"], "known are alpha, exempt"),
        (["--arch", "resnet7"], "arch must be one of"),
        (["--num-heads", 3], "num_heads must be at least 1 and divide the 64 channels"),
        (["--tau", 0], "tau must be positive"),
        (["--mu", 1], "mu must be in [0, 1)"),
        (["--device", "abacus"], "device abacus cannot be used"),
        (["--data", "cifar100", "--root", "nowhere"], "nowhere/cifar-100-python is missing"),
        (["--output", __file__], "cannot be made"),
    ],
)
def test_command_line_errors(command_line, arguments, message):
    with pytest.raises(SystemExit) as stop:
        command_line(*TINY, *arguments)
    assert str(stop.value).startswith("error: ") and message in str(stop.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--imbalance-factor", 0.5], "--imbalance-factor: must be at least 1, got 0.5"),
        (["--classifier", "quadratic"], "--classifier: invalid choice: 'quadratic'"),
        (["--retrain", "all"], "--retrain: invalid choice: 'all'"),
        (["--loss", "hinge"], "--loss: invalid choice: 'hinge'"),
        (["--loss-options", "p"], "--loss-options: expected NAME=NUMBER, got 'p'"),
        (["--loss-options", "p=x"], "--loss-options: expected NAME=NUMBER, got 'p=x'"),
        (["--num-heads", 0], "--num-heads: must be at least 1"),
        (["--gamma", "nan"], "--gamma: must be at least 0"),
        (["--batch-size", 1], "--batch-size: must be at least 2"),
        (["--seeds", 2**40], "--seeds: must be in [0, 4294967295]"),
        (["--epochs", 0], "--epochs: must be at least 1"),
        (["--data", "cifar10"], "--data cifar10 needs --root"),
        (["--data", "list", "--root", "."], "needs --train-list and --test-list"),
    ],
)
def test_arguments_that_cannot_be(command_line, arguments, message, capsys):
    with pytest.raises(SystemExit):
        command_line(*TINY, *arguments)
    assert message in capsys.readouterr().err


def test_help_is_quick_and_complete():
    code = (
        "import runpy, sys; sys.argv = ['train_classifier.py', '--help']\n"
        "try: runpy.run_path('tools/train_classifier.py', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 0, done.stderr
    text = "".join(done.stdout.split())
    for names in (LOSSES, CLASSIFIER_NAMES, RETRAINING):
        assert "{" + ",".join(names) + "}" in text
