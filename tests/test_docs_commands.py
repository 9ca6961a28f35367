"""The commands in README and docs/ name tools, options and config keys that there are."""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from tde_det.engine import read_config

PAGES = [Path(REPOSITORY, "README.md"), *sorted(Path(REPOSITORY, "docs").glob("*.md"))]


def commands():
    """All commands with ``tools/…`` of the pages' bash blocks, without comments, in one line each.

    What comes before the tool, such as ``python`` or torchrun with its options, is left out.
    """
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] and words[0] in ("python", "torchrun", "srun"):
                    start = next((i for i, w in enumerate(words) if w.startswith("tools/")), None)
                    if start is not None:
                        label = f"{page.name}: {' '.join(words[start : start + 3])}"
                        found.append(pytest.param(words[start:], id=label))
    return found


def test_there_are_some():
    tools = {command.values[0][0] for command in commands()}
    assert sum("SOLVER.IMS_PER_BATCH" in command.values[0] for command in commands()) >= 2
    assert {"tools/train_net.py", "tools/sweep.py", "tools/export_model.py"} <= tools


@pytest.mark.parametrize("words", commands())
def test_command(words, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", words)
    spec = importlib.util.spec_from_file_location("tool", words[0])
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    args = tool.parse_args()  # ends the program if it does not know an option
    config = getattr(args, "config_file", "")
    if os.path.exists(config):  # else one of another project, or the reader's own
        read_config(config, args.opts)
    else:
        assert not config or config == "shop.yaml" or config.startswith("detectron2/"), config


def test_the_config_of_getting_started(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    page = Path("docs/getting_started.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    own = tmp_path / "shop.yaml"
    own.write_text(block.replace('"configs/', f'"{REPOSITORY}/configs/'))
    cfg = read_config(str(own))
    assert cfg.MODEL.ROI_HEADS.NAME == "TDECascadeROIHeads" and cfg.DATASETS.TEST == ("shop_val",)
