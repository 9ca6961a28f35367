"""The benchmark of image classifiers: what it trains, chooses and shows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import classification
import pytest
import torch
from classification import (
    PLAIN,
    RATES,
    SEEDS,
    Run,
    halves,
    perform,
    plan,
    read,
    rows,
    search,
    table,
)
from conftest import REPOSITORY
from test_image_data import colours

from tde_det.classification.experiment import build
from tde_det.classification.methods import evaluate
from tde_det.classification.training import train

FIRST = Run("linear", PLAIN, 0.2, 0)


def accuracy(tuning, shown):
    parts = {"many": tuning, "medium": None, "few": 1.0}
    return {"tuning": {"all": tuning, **parts}, "table": {"all": shown, **parts}}


def complete(tuning_of=lambda run: 50.0):
    """All runs, with invented results."""
    done = {}
    while missing := plan(done)[1]:
        assert not set(missing) & set(done) and len(set(missing)) == len(missing)
        for run in missing:
            settings = [s for f in classification.settings_of(run.classifier).values() for s in f]
            done[run] = {
                setting: accuracy(tuning_of(run) + len(settings) - i, 10.0 * run.seed + i)
                for i, setting in enumerate(settings)
            }
    return done


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.2, {0.1, 0.2, 0.4}),
        (0.1, {0.05, 0.1, 0.2, 0.4}),
        (0.8, {0.1, 0.2, 0.4, 0.8, 1.6}),
        (100, {0.1, 0.2, 0.4, 0.8, 1.6, 3.2}),
    ],
)
def test_rates_beyond_the_edge_are_tried(best, tried):
    def make(rate):
        return FIRST._replace(rate=rate)

    done = {}
    while missing := search(done, make)[1]:
        done.update({run: {"none": accuracy(-abs(run.rate - best), 0.0)} for run in missing})
    assert {run.rate for run in done} == tried
    assert search(done, make)[0] == min(tried, key=lambda rate: abs(rate - best))


def test_a_rate_that_diverged_is_not_chosen():
    done = {FIRST._replace(rate=rate): {"none": accuracy(9.0 - rate, 0.0)} for rate in RATES}
    done[FIRST._replace(rate=0.1)] = {}
    assert search(done, lambda rate: FIRST._replace(rate=rate)) == (0.2, [])


def test_every_row_has_its_own_rate_and_all_seeds():
    wanted = {("linear", PLAIN): 0.1, ("causal_norm", "balanced_softmax"): 0.4}
    done = complete(lambda run: -abs(run.rate - wanted.get((run.classifier, run.loss), 0.2)))
    chosen, missing = plan(done)
    assert not missing and len(chosen) == 8
    for runs in chosen.values():
        assert [run.seed for run in runs] == [*SEEDS]
        assert {run.rate for run in runs} == {wanted.get((runs[0].classifier, runs[0].loss), 0.2)}
    start = chosen["linear", PLAIN]
    assert [run._replace(retrain="", retrain_rate=0.0) for run in chosen["linear", "lws"]] == start


def test_settings_are_chosen_by_the_mean_of_the_tuning_halves_and_shown_by_the_other(tmp_path):
    done = complete()
    for seed, value in zip(SEEDS, (900.0, 10.0, 10.0)):  # best on the first seed, and on average
        run = plan(done)[0]["linear", PLAIN][seed]
        done[run]["norcal gamma=0.4"] = accuracy(value, 70.0 + seed)
        done[run]["norcal gamma=1"] = accuracy(200.0, 99.0)
    titles = {title: setting for title, _, setting in rows(done)}
    assert titles["linear + `norcal gamma=0.4`"] == "norcal gamma=0.4"
    text = table(done, tmp_path)
    assert "| linear + `norcal gamma=0.4`" in text and "71.0 ± 1.0" in text
    assert "99.0" not in text and "FRACAL" not in text
    assert {"linear, balanced softmax", "de-confounded + cRT"} <= {t.split(" (")[0] for t in titles}
    assert any(t.startswith("de-confounded + `tde alpha=0.5`") for t in titles)
    assert not any("linear + `tde" in t or "de-confounded + `tau_norm" in t for t in titles)


def test_halves_have_no_image_in_common():
    labels = torch.repeat_interleave(torch.arange(3), 10)
    parts = halves(labels)
    assert not (parts["tuning"] & parts["table"]).any()
    assert torch.bincount(labels[parts["table"]]).tolist() == [5, 5, 5]


def test_a_run_is_that_of_the_package(tmp_path, monkeypatch):
    benchmark = colours([40, 20, 10], size=8, test_per_class=10)
    schedule = classification.SCHEDULE._replace(epochs=2, batch_size=16)
    settings = classification.SETTINGS._replace(schedule=schedule, retrain_schedule=schedule)
    for name, value in (("data", lambda _: benchmark), ("SCHEDULE", schedule)):
        monkeypatch.setattr(classification, name, value)
    monkeypatch.setattr(classification, "SETTINGS", settings)
    run = Run("causal_norm", PLAIN, 0.1, 1)
    again = run._replace(retrain="crt", retrain_rate=0.05)
    for one in (run, again):
        perform(one, tmp_path)
    done = read(tmp_path)
    assert set(done) == {run, again} and set(done[again]) == {"none"}

    torch.manual_seed(1)
    settings = settings._replace(schedule=schedule._replace(lr=0.1))
    model, criterion = build("causal_norm", benchmark, settings)
    train(model, criterion, benchmark.train, settings, "")
    for half, part in halves(benchmark.test.labels).items():
        test = type(benchmark.test)(benchmark.test.images[part], benchmark.test.labels[part])
        expected = evaluate(model, "softmax", benchmark._replace(test=test), settings, "")[0]
        assert done[run]["none"][half] == expected["causal_norm"]
    file = tmp_path / f"{again.name}.json"
    first = file.read_text()
    perform(again, tmp_path)
    parts = [
        json.loads(t)["accuracy"] for t in (first, (tmp_path / f"{again.name}.json").read_text())
    ]
    assert parts[0] == parts[1]


def test_ctrl_c_ends_all_processes_and_leaves_no_broken_file(tmp_path):
    folder = tmp_path / "results"
    command = [sys.executable, "benchmarks/classification.py", "--jobs", "2", "--output", folder]
    options = {"cwd": REPOSITORY, "env": {**os.environ, "PYTHONPATH": REPOSITORY}}
    # Tests that a script starts by "&" have SIGINT ignored, and so would what they start.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, **options)
    try:
        while not folder.exists():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(4)
        os.killpg(process.pid, signal.SIGINT)
        error = process.communicate(timeout=30)[1].decode()
        assert process.returncode == 1 and "the same command continues" in error
        with pytest.raises(ProcessLookupError):
            for _ in range(100):  # those that were starting end a little later
                os.killpg(process.pid, 0)
                time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert read(folder) == {}
