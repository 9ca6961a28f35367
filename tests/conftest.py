"""Shared fixtures."""

import logging
import os

import pytest
import torch
from detectron2.config import get_cfg

from tde_det import add_tde_config

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
        cfg.MODEL.WEIGHTS = ""
        cfg.merge_from_list(list(opts))
        return cfg

    return load
