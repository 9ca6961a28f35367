"""Trainings that are killed, stopped, or meet a full disk: real processes, and what is left."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.stop_signals import STOPPED

C, ITERATIONS = 5, 40
CONFIG = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"
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
