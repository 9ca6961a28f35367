"""Shared fixtures, and what several tests do to models and processes."""

import datetime
import logging
import os
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.config import get_cfg
from detectron2.export import scripting_with_instances
from detectron2.structures import Boxes
from tiny_trainer import tiny_data, trainer  # noqa: F401 fixtures

from tde_det import add_tde_config

# Files whose tests start tools, or train and evaluate models: -m "not slow" leaves them out.
SLOW = ("activation", "bad_input", "box_predictor", "calibrate", "checkpoints")
SLOW += ("class_means", "classification_benchmark", "configs", "continued_evaluation", "cuda")
SLOW += ("download", "export", "fake_cuda", "faults", "gpu_benchmark", "lazy_config", "live")
SLOW += ("losses_in_models", "mini_lvis", "reader_properties", "real_data", "recommend")
SLOW += ("report_model", "report_page", "samplers", "slurm", "sweep", "timm_backbone", "tools")
SLOW += ("train_classifier", "train_loader", "train_step", "training", "two_processes")
SLOW += ("untrusted_files",)

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker("slow")


def scripted(model):
    """A detector compiled by TorchScript."""
    fields = {
        "proposal_boxes": Boxes,
        "objectness_logits": torch.Tensor,
        "pred_boxes": Boxes,
        "scores": torch.Tensor,
        "pred_classes": torch.Tensor,
    }
    if model.roi_heads.mask_on:
        fields["pred_masks"] = torch.Tensor
    return scripting_with_instances(model, fields)


def join_gloo(rank, folder):
    """Make this process one of two."""
    timeout = datetime.timedelta(seconds=60)  # a rank that does not take part must not hang CI
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2, timeout=timeout
    )


def end_within(processes, seconds):
    """Wait for processes; a test whose processes hang fails. Their exit codes."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    assert not hanging, f"{len(hanging)} of {len(processes)} processes hang"
    return [process.exitcode for process in processes]


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keeps what the tests read out of the user's cache, also in the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _logs_reach_pytest():
    """Setting up logging, as tools do, would hide the package's log from all tests after it."""
    logging.getLogger("tde_det").propagate = True


@pytest.fixture
def load_config():
    """Config of a file in configs/, on the CPU and without pretrained weights."""

    def load(name, *opts):
        cfg = get_cfg()
        add_tde_config(cfg)
        cfg.merge_from_file(os.path.join(REPOSITORY, "configs", name))
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = ""
        cfg.merge_from_list(list(opts))
        return cfg

    return load


@pytest.fixture
def log(caplog):
    """What the package logs, also after a tool has set up logging in this process."""
    loggers = [
        logging.getLogger(f"tde_det.{name}") for name in ("modeling.build", "engine.trainer")
    ]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)
