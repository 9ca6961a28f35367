"""Trainings that are killed, stopped, or meet a full disk: real processes, and what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.stop_signals import STOPPED

C, ITERATIONS = 5, 40
CONFIG = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"
TOOL = f"{REPOSITORY}/tools/train_net.py"
# A Cascade Mask R-CNN of 0.4 million weights.
OPTS = (
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 30),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 10, "TEST.DETECTIONS_PER_IMAGE", 5),
    *("MODEL.ROI_HEADS.NUM_CLASSES", C, "INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *("INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.STEPS", "(20,)"),
    *("SOLVER.WARMUP_ITERS", 5, "SOLVER.BASE_LR", 0.01, "DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 8, "SOLVER.MAX_ITER", ITERATIONS),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    build_mini_lvis(str(root / "mini_lvis"), Settings(C, 64, train_images=8, val_images=2, seed=1))
    return root


@pytest.fixture(scope="module")
def train(data):
    """Trains in a fork of a process that has imported everything."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", f"{REPOSITORY}/tests/forked_trainings.py", "0"],
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(data),
            "PYTHONPATH": os.pathsep.join([REPOSITORY, os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"

    def run(folder, *opts, resume=False, **arguments):
        words = ["--config-file", CONFIG, "OUTPUT_DIR", folder, *OPTS, *opts]
        words = [str(word) for word in (*words, *(["--resume"] if resume else []))]
        request = {"words": words, "folder": str(folder), **arguments}
        print(json.dumps(request), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(timeout=60)


def state_of(path):
    return torch.load(path, weights_only=False)


def assert_same_training(path, other):
    """Weights, statistics, optimizer and schedule, in every bit."""
    a, b = state_of(path), state_of(other)
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    a, b = a["trainer"], b["trainer"]
    assert (a["iteration"], a["hooks"]) == (b["iteration"], b["hooks"])
    momenta = [trainer["_trainer"]["optimizer"]["state"] for trainer in (a, b)]
    assert momenta[0].keys() == momenta[1].keys()
    for key, value in momenta[0].items():
        assert torch.equal(value["momentum_buffer"], momenta[1][key]["momentum_buffer"])


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "out"
    result = train(folder)
    assert result["codes"] == [0], result["log"][-3000:]
    return folder / "model_final.pth"


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills(train, unbroken, tmp_path, workers):
    out, opts = tmp_path / "out", ("DATALOADER.NUM_WORKERS", workers)
    moments = ("step", "checkpoint", "step", "evaluation", "start")
    for kill in range(10):
        moment = moments[kill % len(moments)]
        delay = {"step": 0.6, "checkpoint": 0.005, "evaluation": 0.05, "start": 1.0}[moment]
        signal_to = {"send": "SIGKILL", "moment": moment, "delay": delay}
        result = train(out, *opts, resume=True, **signal_to)
        assert result["sent"] and result["codes"] == [-9], result["log"][-3000:]
    result = train(out, *opts, resume=True)
    assert result["codes"] == [0], result["log"][-3000:]
    assert_same_training(out / "model_final.pth", unbroken)
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    "name, moment, delay",
    [
        *(("SIGTERM", "step", 0.3), ("SIGUSR1", "step", 0.0)),
        *(("SIGTERM", "evaluation", 0.05), ("SIGUSR1", "checkpoint", 0.0)),
    ],
)
def test_signals(train, unbroken, tmp_path, name, moment, delay):
    out = tmp_path / "out"
    result = train(out, send=name, moment=moment, delay=delay)
    assert result["codes"] == [STOPPED] and result["seconds"] < 30
    assert "Traceback" not in result["log"] and f"Stopped by {name}" in result["log"]
    last = state_of(out / (out / "last_checkpoint").read_text())["trainer"]["iteration"]
    assert f"iter: {last}" in result["log"] or moment == "evaluation"
    result = train(out, resume=True)
    assert result["codes"] == [0] and f"from iteration {last + 1}" in result["log"]
    assert_same_training(out / "model_final.pth", unbroken)


def start(data, folder, words, moment="Starting training", **options):
    """A training by train_net.py, once its log says so; and its log.

    Args:
        words: between ``python`` and the options of the training.
    """
    command = [sys.executable, *words, "--config-file", CONFIG, "OUTPUT_DIR", folder, *OPTS]
    command += ["SOLVER.MAX_ITER", 5000, "SOLVER.CHECKPOINT_PERIOD", 5000]
    command += ["TEST.EVAL_PERIOD", 3 if moment == "Start inference" else 0]
    command += ["DATALOADER.NUM_WORKERS", 2 if len(words) == 1 else 0]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([REPOSITORY, os.environ.get("PYTHONPATH", "")])
    log, deadline = folder / "out", time.monotonic() + 120
    with log.open("w") as file:
        options.update(env=environment, stdout=file, stderr=file)
        process = subprocess.Popen([*map(str, command)], **options)
    while moment not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, log


def children_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.parametrize("moment", ["Starting training", "Start inference"])
def test_a_signal_to_a_program_with_loader_workers(data, tmp_path, moment):
    """They ignore the signal; the program does not wait for them."""
    process, log = start(data, tmp_path, [TOOL], moment)
    deadline = time.monotonic() + 60
    while len(children_of(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        assert len(children_of(process)) >= 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == STOPPED, log.read_text()[-3000:]
    finally:
        process.kill()


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TOOL],
    "--num-gpus": [TOOL, "--num-gpus", "2"],
    "quickstart.py": [
        "-c",
        f"import sys; sys.path.insert(0, '{REPOSITORY}/tools'); import quickstart; "
        "quickstart.run('train_net.py', *sys.argv[1:])",
    ],
}


def start_by(launcher, data, folder, **options):
    if launcher == "--num-gpus" and torch.cuda.is_available():
        pytest.skip("would train on GPUs")
    return start(data, folder, LAUNCHERS[launcher], **options)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher(data, tmp_path, launcher):
    """It reaches the processes that train, one way or the other."""
    process, log = start_by(launcher, data, tmp_path)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    # torchrun says that it has been stopped, whatever its processes say.
    assert code == (1 if launcher == "torchrun" else STOPPED), log.read_text()[-3000:]
    last = tmp_path / (tmp_path / "last_checkpoint").read_text()
    assert state_of(last)["trainer"]["iteration"] < 4999
    assert "Stopped by" in log.read_text()


def test_no_process_outlives_its_launcher(data, tmp_path):
    """Not even where a script's ``&`` has SIGINT ignored."""
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process, log = start_by("--num-gpus", data, tmp_path, **ignored)
    children = children_of(process)
    assert len(children) >= 2, log.read_text()[-3000:]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(Path(f"/proc/{c}").exists() for c in children):
        time.sleep(0.2)
    assert not [c for c in children if Path(f"/proc/{c}").exists()]


class TestTwoProcesses:
    OPTS = ("SOLVER.MAX_ITER", 14, "TEST.EVAL_PERIOD", 5, "SOLVER.CHECKPOINT_PERIOD", 4)

    @pytest.fixture(scope="class")
    def expected(self, train, tmp_path_factory):
        folder = tmp_path_factory.mktemp("two") / "out"
        result = train(folder, *self.OPTS, ranks=2)
        assert result["codes"] == [0, 0], result["log"][-3000:]
        return folder / "model_final.pth"

    @pytest.mark.parametrize("rank", [0, 1, None])
    def test_a_signal_to_any_of_them(self, train, expected, tmp_path, rank):
        """All stop after the same iteration."""
        signal_to = {"send": "SIGTERM", "moment": "step", "delay": 0.3, "rank": rank}
        result = train(tmp_path / "out", *self.OPTS, ranks=2, **signal_to)
        assert result["codes"] == [STOPPED, STOPPED], result["log"][-3000:]
        result = train(tmp_path / "out", *self.OPTS, ranks=2, resume=True)
        assert result["codes"] == [0, 0], result["log"][-3000:]
        assert_same_training(tmp_path / "out/model_final.pth", expected)

    def test_one_is_killed(self, train, expected, tmp_path):
        signal_to = {"send": "SIGKILL", "moment": "step", "delay": 0.3, "rank": 1}
        result = train(tmp_path / "out", *self.OPTS, ranks=2, **signal_to)
        assert result["codes"][0] > 0 and result["codes"][1] == -9 and result["seconds"] < 30
        result = train(tmp_path / "out", *self.OPTS, ranks=2, resume=True)
        assert result["codes"] == [0, 0], result["log"][-3000:]
        assert_same_training(tmp_path / "out/model_final.pth", expected)

    def test_nan_in_the_rpn_of_one(self, train, tmp_path):
        """Both skip the step, or end with one line."""
        opts = (*self.OPTS, "SOLVER.MAX_ITER", 4, "SOLVER.SKIP_NONFINITE")
        result = train(tmp_path / "out", *opts, 1, ranks=2, break_at=(2, 1))
        assert result["codes"] == [0, 0], result["log"][-3000:]
        assert "Skipped 1 of at most 1 steps: iteration 2: Predicted boxes" in result["log"]
        result = train(tmp_path / "other", *opts, 0, ranks=2, break_at=(2, 1))
        assert result["codes"] == [1, 1] and "Traceback" not in result["log"]
        errors = [line for line in result["log"].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "error: iteration 2: Predicted boxes or" in errors[0]
        assert state_of(tmp_path / "other/model_0000001.pth")["trainer"]["iteration"] == 1


def test_a_learning_rate_of_a_million(train, tmp_path):
    result = train(tmp_path / "out", "SOLVER.BASE_LR", 1e6, "SOLVER.WARMUP_ITERS", 0)
    assert result["codes"] == [1] and "Traceback" not in result["log"]
    (error,) = [line for line in result["log"].splitlines() if line.startswith("error: ")]
    assert "iteration " in error and "image ids " in error and "losses " in error
    for path in (tmp_path / "out").glob("*.pth"):
        weights = state_of(path)["model"]
        assert all(bool(torch.isfinite(w).all()) for w in weights.values() if w.is_floating_point())


class TestFullDisk:
    SHORT = ("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "()")

    @pytest.mark.parametrize("on_full_disk", ["stop", "continue"])
    def test_a_file_may_not_grow(self, train, tmp_path, on_full_disk):
        """The limit is one of the process, which a checkpoint meets and the logs do not."""
        out = tmp_path / "out"
        result = train(out, *self.SHORT, "SOLVER.MAX_ITER", 2)
        assert result["codes"] == [0]
        (out / "model_final.pth").unlink()
        (out / "last_checkpoint").write_text("model_0000001.pth")
        before = (out / "model_0000001.pth").read_bytes()
        opts = (*self.SHORT, "SOLVER.ON_FULL_DISK", on_full_disk)
        result = train(out, *opts, resume=True, largest_file=len(before) // 2)
        assert result["codes"] == [1] and "Traceback" not in result["log"]
        (error,) = [line for line in result["log"].splitlines() if line.startswith("error: ")]
        missing = "model_0000003.pth" if on_full_disk == "stop" else "model_final.pth"
        assert f"{out}/{missing} cannot be written: File too large" in error
        assert "model_0000003.pth cannot be written: File too large" in result["log"]
        assert ("the training goes on" in result["log"]) == (on_full_disk == "continue")
        assert [path.name for path in out.glob("*.p*")] == ["model_0000001.pth"]
        assert (out / "model_0000001.pth").read_bytes() == before
        assert (out / "last_checkpoint").read_text() == "model_0000001.pth"

    @pytest.fixture
    def small_disk(self, tmp_path):
        folder = tmp_path / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    @pytest.mark.parametrize("on_full_disk", ["stop", "continue"])
    def test_a_full_file_system(self, train, small_disk, tmp_path, on_full_disk):
        """Logs and events meet it too; the last checkpoint does not if there is room again."""
        out = small_disk / "out"
        opts = (*self.SHORT, "SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 10)
        opts += ("SOLVER.ON_FULL_DISK", on_full_disk)
        fill = {"send": "a full disk", "moment": "step", "delay": 0.5}
        result = train(out, *opts, log=str(tmp_path / "log"), **fill)
        assert result["codes"] == [1] and "Traceback" not in result["log"], result["log"][-3000:]
        (error,) = [line for line in result["log"].splitlines() if line.startswith("error: ")]
        assert "cannot be written: No space left on device" in error
        assert not list(out.glob("*.partial"))
        (small_disk / "ballast").unlink()
        result = train(out, *opts, resume=True, log=str(tmp_path / "log"))
        assert result["codes"] == [0], result["log"][-3000:]
