"""The benchmark of methods for long tails: its rows, what it decides, its page, and its runner."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import REPOSITORY
from longtail.data import FOLDER as DATA
from longtail.data import Photographs, build_data
from longtail.page import write_page
from longtail.pretraining import as_one_class, without_classes
from longtail.results import CLASS_COLUMNS, CLASS_KEY, COLUMNS, Results
from longtail.rows import BY_NAME, GRIDS, SEEDS, TRAININGS, row_title, rows, settings
from longtail.run import Runner
from longtail.search import Search
from longtail.shapes import SHAPES
from longtail.steps import Model, Steps

from tde_det.engine import read_config
from tde_det.errors import InputError

FOLDER = Path(REPOSITORY) / "benchmarks/longtail"
LINEAR = BY_NAME["linear"]


def config(training, shape):
    opts = [*SHAPES[shape].opts, *training.opts]
    return read_config(str(FOLDER / SHAPES[shape].config), opts)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BY_NAME)
def test_every_row_has_a_config_at_the_setting_of_lvis(name, shape):
    cfg = config(BY_NAME[name], shape)
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-4
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    num_classes = getattr(SHAPES[shape].data, "num_classes", 58)  # of the photographs
    assert num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert cfg.MODEL.ROI_BOX_HEAD.FC_DIM % cfg.MODEL.TDE.NUM_HEADS == 0


def test_the_rows_cover_the_methods():
    configs = {t.name: config(t, "small") for t in TRAININGS}
    plain = {n: c for n, c in configs.items() if c.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"}
    losses = {c.MODEL.LONG_TAIL.LOSS for c in plain.values() if c.MODEL.TDE.CLASSIFIER == "linear"}
    wanted = "cross_entropy focal eqlv2 seesaw federated balanced_softmax gol ecm ldam"
    assert losses == set(wanted.split())
    kinds = {(c.MODEL.TDE.CLASSIFIER, c.MODEL.TDE.NUM_HEADS) for c in plain.values()}
    assert {("causal_norm", k) for k in (1, 2, 4)} | {("cosine", 2), ("capsule", 2)} < kinds
    sampled = {
        (c.DATALOADER.SAMPLER_TRAIN, c.MODEL.TDE.CLASSIFIER, c.MODEL.LONG_TAIL.DECOUPLE)
        for c in configs.values()
    }
    rfs, balanced = "RepeatFactorTrainingSampler", "ClassBalancedSampler"
    assert {(rfs, "linear", ""), (rfs, "causal_norm", "")} < sampled
    assert {(balanced, "linear", "crt"), (balanced, "linear", "lws")} < sampled
    normalized = [n for n, c in configs.items() if c.MODEL.TDE.CLASSIFIER != "linear"]
    assert all({(n, "none"), (n, "tde")} < {*rows()} for n in normalized)
    assert ("deconfounded", "tde, not exempt") in rows()
    for name in ("linear", "deconfounded", "rfs"):
        families = {family for training, family in rows() if training == name}
        own = "tde" if name == "deconfounded" else "tau_norm"
        assert {"none", own, "ncm", "norcal", "logit_adjustment", "fracal"} < families
        assert {f"{own} + norcal", f"{own} + fracal", "ncm + logit_adjustment"} < families
    assert len({row_title(*row) for row in rows()}) == len(rows())


def test_every_rate_and_setting_is_chosen_from_several():
    assert all(len(shape.rates) >= 3 for shape in SHAPES.values())
    assert all(len(settings(family)) >= 3 for family in GRIDS if family != "none")
    assert settings("tde, not exempt")[0] == "tde alpha=0.25 exempt=False"


def test_photographs_are_linked_and_their_validation_images_halved(tmp_path):
    source, root = tmp_path / "photographs", tmp_path / "out/longtail_data"
    data = Photographs("ccp", "train.json", "val.json")
    with pytest.raises(InputError, match=r"photographs/ccp/val.json does not exist: name the fold"):
        build_data(data, root, source)
    (source / "ccp").mkdir(parents=True)
    images = [
        {"id": i, "neg_category_ids": [], "not_exhaustive_category_ids": []} for i in range(6)
    ]
    annotations = [{"id": i, "image_id": i, "category_id": 1} for i in range(6)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (source / "ccp/val.json").write_text(json.dumps(content))
    for _ in range(2):
        build_data(data, root, source)
    halves = [json.loads((root / f"{half}.json").read_text()) for half in ("tuning", "table")]
    assert sorted(i["id"] for half in halves for i in half["images"]) == [*range(6)]
    assert [len(half["annotations"]) for half in halves] == [3, 3]
    assert (root / "ccp/val.json").exists()


def test_pretraining_shows_none_of_the_classes_and_all_others_renumbered():
    images = [
        {"id": i, "neg_category_ids": [1, 3], "not_exhaustive_category_ids": [2]} for i in (5, 6)
    ]
    annotations = [
        {"id": i, "image_id": image, "category_id": c}
        for i, (image, c) in enumerate([(5, 1), (5, 3), (6, 3), (6, 2)])
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate("abc", 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    found = without_classes(content, {"a"})
    assert found["categories"] == [{"id": 1, "name": "b"}, {"id": 2, "name": "c"}]
    (image,) = found["images"]  # the other shows class a
    assert image == {"id": 6, "neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
    assert [(a["id"], a["category_id"]) for a in found["annotations"]] == [(2, 2), (3, 1)]


def test_pretraining_on_photographs_knows_objects_alone():
    image = {"id": 5, "neg_category_ids": [1, 3], "not_exhaustive_category_ids": [2]}
    annotations = [{"id": i, "image_id": 5, "category_id": c} for i, c in enumerate([1, 3, 3, 2])]
    categories = [{"id": i, "name": name, "frequency": "r"} for i, name in enumerate("abc", 1)]
    found = as_one_class({"images": [image], "annotations": annotations, "categories": categories})
    assert found["categories"] == [{"id": 1, "name": "object", "frequency": "f"}]
    assert found["annotations"] == [{**a, "category_id": 1} for a in annotations]
    # No class is known to be absent, or to be annotated in part.
    assert found["images"] == [{"id": 5, "neg_category_ids": [], "not_exhaustive_category_ids": []}]


class FakeSteps:
    """AP by a formula of rate, iterations and setting; remembers what was trained."""

    name = "small"
    shape = SHAPES["small"]._replace(rates=(0.1, 0.2, 0.4), iterations=100, least_iterations=0)

    def __init__(self, ap):
        self.ap, self.models, self.forgotten = ap, [], []

    def train(self, model, shorter=None, start=""):
        self.models.append((model.rate, model.iterations, shorter and shorter.iterations))
        return self.ap(model, "none") is not None

    def trained(self, model):
        return {"commit": "c", "hardware": "h", "seconds": 1.6}

    def evaluate(self, model, half, names, masks=True):
        shift = 100 if half == "table" else 0
        return {s: {"bbox/AP": str(self.ap(model, s) + shift), "bbox/APr": ""} for s in names}

    def forget(self, model):
        self.forgotten.append((model.rate, model.iterations))


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results.csv")


def search(steps, results, tmp_path):
    return Search(steps, results, Results(tmp_path / "classes.csv", CLASS_COLUMNS, CLASS_KEY))


def test_rates_beyond_an_edge_are_tried_and_training_ends_when_it_gains_little(results, tmp_path):
    curve = {100: 10.0, 150: 12.0, 225: 13.0, 338: 13.9}
    steps = FakeSteps(lambda m, s: curve[m.iterations] - abs(m.rate - 0.8))
    chosen = search(steps, results, tmp_path).converged(LINEAR)
    first = [(rate, 100, None) for rate in (0.1, 0.2, 0.4, 0.8, 1.6)]
    assert steps.models == [*first, (0.8, 150, 100), (0.8, 225, 150), (0.8, 338, 225)]
    assert chosen == Model(LINEAR, 0.8, 338, 1)
    assert (0.8, 338) not in steps.forgotten and len(steps.forgotten) == 7
    tried = results.lines(row="linear", split="tuning", iterations=100)
    assert [line["lr"] for line in tried] == ["0.1", "0.2", "0.4", "0.8", "1.6"]
    assert tried[0]["box_AP"] == "9.30" and tried[0]["seconds"] == "2"


def test_a_longer_training_that_loses_is_not_taken_nor_is_one_that_diverges(results, tmp_path):
    curve = {100: 10.0, 150: 9.5}
    steps = FakeSteps(lambda m, s: None if m.rate > 0.3 else curve[m.iterations] + m.rate)
    assert search(steps, results, tmp_path).converged(LINEAR) == Model(LINEAR, 0.2, 100, 1)
    assert results.lines(lr="0.4")[0]["box_AP"] == ""


def test_a_training_that_gains_slowly_is_not_ended_early(results, tmp_path):
    curve = {100: 10.0, 150: 10.5, 225: 11.0, 338: 12.5, 507: 13.0}
    steps = FakeSteps(lambda m, s: curve[m.iterations] - abs(m.rate - 0.2))
    steps.shape = steps.shape._replace(least_iterations=300)
    assert search(steps, results, tmp_path).converged(LINEAR) == Model(LINEAR, 0.2, 507, 1)


def test_settings_are_chosen_on_one_half_and_reported_on_the_other(results, tmp_path):
    best = {"none": 1, "norcal gamma=0.4": 9, "ncm temperature=32": 5}
    steps = FakeSteps(lambda m, s: best.get(s, 0))
    model, found = Model(LINEAR, 0.1, 100, 1), search(steps, results, tmp_path)
    chosen = found.choose(model)
    assert chosen["norcal"] == "norcal gamma=0.4" and chosen["ncm"] == "ncm temperature=32"
    assert list(chosen) == ["none", *LINEAR.adjust]
    found.report(model, chosen)
    (line,) = results.lines(split="table", adjust="norcal")
    assert line["setting"] == "norcal gamma=0.4" and line["box_AP"] == "109.00"
    worse = model._replace(training=BY_NAME["gol"])
    assert found.best([worse, model], 2) == [model]  # of its two best rows


def test_a_row_that_fails_keeps_no_other_from_its_seeds(results, tmp_path, monkeypatch):
    monkeypatch.setattr("longtail.page.write_page", lambda *_: None)
    trained = []

    def ap(model, setting):
        trained.append((model.training.name, model.seed))
        if model.training.name == "ecm":
            raise RuntimeError("no memory")
        return 10.0

    steps = FakeSteps(ap)
    steps.shape = steps.shape._replace(pretraining=None)
    runner = Runner(steps, results, results, (), jobs=1)
    assert runner.rows([BY_NAME[name] for name in ("gol", "ecm", "seesaw")]) == 1
    seeds = [(line["row"], line["seed"]) for line in results.lines(split="table")]
    assert sorted(seeds) == [(name, str(s)) for name in ("gol", "seesaw") for s in SEEDS]
    order = [*dict.fromkeys(seed for _, seed in trained)]
    assert order == [1, 2, 3] and ("seesaw", 1) in trained[: trained.index(("gol", 2))]


def line(training, family, seed, ap, **values):
    known = {"shape": "small", "row": training, "adjust": family, "seed": seed, "lr": "0.1"}
    known |= {"iterations": 800, "split": "table", "setting": settings(family)[0]}
    known |= {"commit": "abc1234", "hardware": "a machine"}
    return {**known, **{name: ap for name in COLUMNS[-20:]}, **values}


def test_lines_of_equal_keys_are_replaced_and_others_kept(results, tmp_path):
    results.add([line("linear", "none", 1, 1), line("linear", "none", 2, 2)])
    results.add(
        [line("linear", "none", 1, 3, commit="other"), line("linear", "none", 1, 4, lr="0.2")]
    )
    again = Results(tmp_path / "results.csv").lines()
    assert [(x["seed"], x["lr"], x["box_AP"]) for x in again] == [
        ("2", "0.1", "2"),
        ("1", "0.1", "3"),
        ("1", "0.2", "4"),
    ]
    assert list(again[0]) == list(COLUMNS)


@pytest.mark.parametrize("at_edge", [False, True])
def test_the_page_has_means_marks_and_names_what_is_missing(results, tmp_path, at_edge):
    results.add(line("linear", "none", seed, ap) for seed, ap in ((1, 10), (2, 12), (3, 17)))
    results.add([line("linear", "none", 2, 99, lr="0.4"), line("gol", "none", 1, 12.34)])
    norcal = {"setting": "norcal gamma=0.8"}
    adjusted = ((1, 12), (2, 13), (3, 20))
    results.add(line("linear", "norcal", seed, ap, **norcal) for seed, ap in adjusted)
    results.add(
        line("linear", "norcal", 1, 1, split="tuning", setting=f"norcal gamma={gamma}")
        for gamma in (0.4, 0.8) + (() if at_edge else (1,))
    )
    results.add(
        line("gol", "none", 1, ap, split="tuning", iterations=n, lr=lr)
        for n, lr, ap in ((600, "0.1", 11), (600, "0.2", 10), (900, "0.1", 11.5))
    )
    tuning = {"split": "tuning", "lr": "0.2"}
    results.add(
        line(row, "none", 1, ap, **tuning, shape=shape, iterations=n)
        for row, shape, n, ap in (
            *(("linear", "small", 600, 25), ("linear", "small", 900, 26)),
            *(("linear", "imagenet", 800, 12), ("linear", "imagenet", 1800, 15)),
            *(("deconfounded", "small", 600, 27), ("deconfounded", "small", 900, 28)),
            *(("deconfounded", "imagenet", 800, 22), ("deconfounded", "imagenet", 1800, 25)),
        )
    )
    classes = Results(tmp_path / "classes.csv", CLASS_COLUMNS, CLASS_KEY)
    known = {"shape": "small", "row": "linear", "adjust": "none", "train_images": 3}
    classes.add([{**known, "name": "cat", "AP": 50}, {**known, "name": "dog", "AP": ""}])
    page, readme = tmp_path / "benchmark.md", tmp_path / "README.md"
    readme.write_text("before\n<!-- headline -->\nold\n<!-- /headline -->\nafter\n")
    write_page(results, classes, page, readme)
    parts = re.split("## (?:Small|Redrawn|Photographs|Full):", page.read_text())
    why, small, redrawn, photographs, full = parts
    why = " ".join(why.split())
    assert "| linear | 15.0/15.0 after 1,800 iterations | 26.0/26.0 after 900" in why
    assert "| de-confounded | 25.0/25.0 after 1,800 iterations | 28.0/28.0 after 900" in why
    lines = small.splitlines()
    linear, tried = [x for x in lines if x.startswith("| linear |")]
    assert linear.split(" | ")[4] == "13.0 ± 3.6"  # of 10, 12 and 17
    assert tried == "| linear | 0.2: 25 | 600: 25.00 (25.0); 900: 26.00 (26.0) |"
    (norcal,) = [x for x in lines if x.startswith("| linear + NorCal |")]
    assert norcal.split(" | ")[-1] == "+2.0 ± 1.0 |"  # of 2, 1 and 3
    assert ("`norcal gamma=0.8` ²" in norcal) is at_edge
    assert ("² The largest value" in small) is at_edge
    gol = [x for x in lines if x.startswith("| GOL |")]
    assert gol[0].split(" | ")[4] == "12.3 ¹"
    assert lines.index(linear) < lines.index(gol[0])  # the higher AP comes first
    assert gol[1] == "| GOL | 0.1: 11; 0.2: 10 | 600: 11.00 (11.0); 900: 11.50 (11.5) |"
    assert f"{len(rows()) - 3} of {len(rows())} rows" in small
    (names,) = [x for x in lines if x.startswith("**Missing")]
    assert "Seesaw" in names and "linear + NCM" in names and "GOL" not in names
    assert f"{len(rows())} of {len(rows())} rows" in full
    few = [row for row in rows() if row[0] in SHAPES["photographs"].rows]
    for part in (redrawn, photographs):
        assert f"{len(few)} of {len(few)} rows" in part and "GOL" not in part
    assert "old" in readme.read_text() and "In short" not in small  # a row of it is missing
    for name in ("rows", "classes", "curves"):
        assert f"(benchmark/small_{name}.png)" in small
        assert (tmp_path / f"benchmark/small_{name}.png").stat().st_size > 1000


def test_the_headline_has_the_best_of_others_and_ours(results, tmp_path):
    aps = {
        ("linear", "none"): 10,
        ("linear", "norcal"): 14,
        ("rfs", "norcal"): 15,
        ("rfs", "prototypes"): 16,  # ours
        ("linear", "prototypes + norcal"): 18,  # ours
        ("gol", "none"): 12,
        ("seesaw", "none"): 13,
        ("k4", "none"): 30,
        ("cosine", "none"): 29,
        ("deconfounded", "none"): 19,
        ("deconfounded", "tde"): 20,
        ("deconfounded", "prototypes + norcal"): 21,
    }
    results.add(line(*row, 1, ap, split="tuning") for row, ap in aps.items())
    results.add(line(*row, 1, 35 - ap) for row, ap in aps.items())  # another order on the table's
    results.add([line("linear", "none", 2, 26)])
    classes = Results(tmp_path / "classes.csv", CLASS_COLUMNS, CLASS_KEY)
    page, readme = tmp_path / "benchmark.md", tmp_path / "README.md"
    readme.write_text("before\n<!-- headline -->\nold\n<!-- /headline -->\nafter\n")
    for _ in range(2):
        write_page(results, classes, page, readme)
    text = readme.read_text()
    head = "| box | AP | AP_r | AP_c | AP_f | iterations | seeds |"
    assert text.startswith(f"before\n<!-- headline -->\n{head}\n")
    assert text.endswith("|\n<!-- /headline -->\nafter\n")
    titles = [x.split(" | ")[0][2:] for x in text.splitlines() if x.startswith("| ")][1:]
    rivals = ["Seesaw", "linear + NorCal", "RFS + NorCal"]
    added = " + prototypes + NorCal"
    ours = [f"linear{added}"]
    ours += [f"de-confounded{method}" for method in (" (α = 0)", " + TDE", added)]
    assert titles == ["linear", *rivals, *ours, "de-confounded, K = 4 (α = 0)"]
    assert "| linear | 25.5 ± 0.7 |" in text and "± 0.7 | 800 | 2 |" in text
    assert "| Seesaw | 22.0 | 22.0 | 22.0 | 22.0 | 800 | 1 |" in text
    assert "### In short" in page.read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Start the runner with the tiny shape, output in a folder."""
    folder = tmp_path_factory.mktemp("longtail")
    (folder / "README.md").touch()
    words = ["--output", folder, "--readme", folder / "README.md"]
    words += ["--shape", "tiny", "--nice", "0", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": REPOSITORY, "OMP_NUM_THREADS": "1"}
    environment["DETECTRON2_DATASETS"] = str(folder / "tiny")
    (folder / "tiny").mkdir()
    build_data(SHAPES["tiny"].data, folder / "tiny" / DATA, folder)

    def start(script, *more, **options):
        command = [sys.executable, FOLDER / script, *(words if script == "run.py" else ()), *more]
        return subprocess.Popen([*map(str, command)], env=environment, text=True, **options)

    return folder, start


@pytest.mark.slow
def test_a_killed_run_continues_without_repeating_what_is_done(run):
    folder, start = run
    names = ("balanced_softmax", "federated")
    first = start("run.py", "--rows", *names)
    while len(done := [*folder.glob("tiny/*/*/*/*/trained.json")]) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    times = {path: path.stat().st_mtime_ns for path in done}
    second = start("run.py", "--rows", *names, stdout=subprocess.PIPE)
    printed, _ = second.communicate(timeout=300)
    assert second.returncode == 0, printed
    assert {path: path.stat().st_mtime_ns for path in done} == times
    with open(folder / "tiny/results.csv", newline="") as f:
        table = [x for x in csv.DictReader(f) if x["split"] == "table"]
    assert {(x["row"], x["seed"]) for x in table} == {(n, str(s)) for n in names for s in (1, 2, 3)}
    assert all(0 <= float(x["mask_AP"]) <= 100 and int(x["seconds"]) >= 0 for x in table)
    assert (folder / "tiny/benchmark.md").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_run(run):
    folder, start = run
    words = ("--rows", "ecm", "ldam", "focal", "--jobs", "1")
    process = start("run.py", *words, start_new_session=True, stderr=subprocess.PIPE)
    while not [*folder.glob("tiny/ecm/*/*/*/log.txt")]:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3 and "Traceback" not in errors
    assert not [*folder.glob("tiny/focal")]


@pytest.mark.slow
def test_a_training_stops_in_time_and_goes_on_from_there(run, tmp_path):
    folder, start = run
    shape = SHAPES["tiny"]
    words = ["--config-file", FOLDER / shape.config, *shape.opts, "OUTPUT_DIR", tmp_path]
    words += ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)"]
    for until, status in (("1", 3), ("inf", 0)):
        process = start("train.py", "--until", until, *words, stdout=subprocess.DEVNULL)
        process.wait(timeout=120)
        assert process.returncode == status
    log = (tmp_path / "log.txt").read_text()
    started = [x.split()[-1] for x in log.splitlines() if "Starting training from" in x]
    assert started == ["0", "1"]
    assert json.loads((tmp_path / "spent.json").read_text())["seconds"] > 0


@pytest.mark.slow
def test_every_step_gets_its_own_exit_status(tmp_path, monkeypatch):
    """Also where steps end while others start: a status can be read only once."""
    monkeypatch.setattr("longtail.steps.build_data", lambda *_: None)
    monkeypatch.setattr("longtail.steps.os.environ", {})
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(3 * (sys.argv[-1] == '0.3'))")
    steps = Steps(SHAPES["tiny"], "tiny", tmp_path, float("inf"), threads=1)

    def status(rate):
        return steps._run(Model(LINEAR, rate, 1, 1), "log.txt", [script], [rate])

    with ThreadPoolExecutor(3) as pool:
        rates = [0.3 if i % 3 else 0.1 for i in range(120)]
        assert [*pool.map(status, rates)] == [3 if rate == 0.3 else 0 for rate in rates]
