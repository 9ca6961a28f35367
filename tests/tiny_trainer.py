"""A trainer on a tiny mini_lvis, by the command line's own way.

conftest.py has its fixtures, with NUM_CLASSES classes, for all test files.
"""

from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, setup

REPOSITORY = Path(__file__).parent.parent
NUM_CLASSES = 5


def build_data(root, num_classes):
    """Eight training images of 64 pixels, in a folder for DETECTRON2_DATASETS."""
    settings = Settings(num_classes, 64, train_images=8, val_images=2, seed=1)
    build_mini_lvis(str(root / "mini_lvis"), settings)
    return root


def make_trainer(output, num_classes, *opts, resume=False, kind=Trainer):
    args = default_argument_parser().parse_args([])
    args.config_file = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"
    args.resume = resume
    args.opts = [
        *("MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes), "SOLVER.IMS_PER_BATCH", "2"),
        *("SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()"),
        *("OUTPUT_DIR", str(output), *map(str, opts)),
    ]
    result = kind(setup(args))
    result.resume_or_load(resume)
    return result


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    return build_data(tmp_path_factory.mktemp("datasets"), NUM_CLASSES)


@pytest.fixture
def trainer(tiny_data, tmp_path, monkeypatch):
    """Make a trainer whose output is in the test's folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_data))

    def make(*opts, resume=False):
        return make_trainer(tmp_path, NUM_CLASSES, *opts, resume=resume)

    return make
