"""The commands in README and docs name scripts, options and keys that there are, and run."""

import importlib.util
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from tool_runs import run_tool, write_small_set

from tde_det.engine import read_config

PAGES = [
    *(Path(REPOSITORY, name) for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
    *sorted(Path(REPOSITORY, "docs").glob("*.md")),
]
FOLDERS = ("tools/", "datasets/", "benchmarks/")


def commands():
    """All commands with our scripts of the pages' bash blocks, in one line each, without comments.

    What comes before the script, such as ``python`` or torchrun with its options, is left out.
    """
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.split("&&")[-1], comments=True)
                if words[:1] and words[0] in ("python", "torchrun", "srun"):
                    start = next((i for i, w in enumerate(words) if w.startswith(FOLDERS)), None)
                    if start is not None:
                        label = f"{page.name}: {' '.join(words[start : start + 3])}"
                        found.append(pytest.param(words[start:], id=label))
    return found


def test_there_are_some():
    tools = {command.values[0][0] for command in commands()}
    assert sum("SOLVER.IMS_PER_BATCH" in command.values[0] for command in commands()) >= 2
    assert {"tools/train_net.py", "tools/sweep.py", "datasets/prepare_lvis.py"} <= tools


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


# At the end of a command: a reader's machine in small.
SHORT = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()")
NO_DOWNLOAD = ("MODEL.TIMM.WEIGHTS", "", "MODEL.TIMM.FROZEN_STAGES", "0")
# These are run with small inputs in tests of their own.
ELSEWHERE = {
    "--serve": "test_live.py",
    "tools/train_classifier.py": "test_train_classifier.py",
    "datasets/build_mini_lvis.py": "test_tools.py",
    "datasets/prepare_lvis.py": "test_download.py",
    "benchmarks/data_loading.py": "test_lvis_table.py",
    "benchmarks/generate_lvis_json.py": "test_lvis_table.py",
    "benchmarks/longtail/run.py": "test_longtail_benchmark.py",
    "benchmarks/run.py": "test_benchmark_tables.py",
}


def file_that_runs(words):
    """The file of tests that runs a command instead of this one, None if there is none."""
    if any(word.split("=")[0].endswith(".py") for word in words[1:]):  # a LazyConfig
        return "test_lazy_config.py"
    return next((ELSEWHERE[word] for word in words if word in ELSEWHERE), None)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A folder in which the commands find what they name: configs, images, models and results.

    The configs are the real ones with narrow layers, for three images of two classes.
    """
    folder = write_small_set(tmp_path_factory.mktemp("reader") / "three")
    changes = yaml.safe_load((folder / "small.yaml").read_text())
    changes["MODEL"]["RESNETS"]["NORM"] = "BN"
    changes["MODEL"]["BACKBONE"] = {"FREEZE_AT": 0}
    changes["SOLVER"]["BASE_LR"] = 1e-4
    changes["SEED"] = 1
    (folder / "configs").mkdir()
    for config in Path(REPOSITORY, "configs").glob("*.yaml"):
        text = yaml.safe_dump({**changes, "_BASE_": str(config), "OUTPUT_DIR": "output"})
        (folder / "configs" / config.name).write_text(text)
    shutil.copy(folder / "small.yaml", folder / "shop.yaml")
    for name in ("photos", "coco"):
        shutil.copytree(folder / "images", folder / name)
    shutil.copy(folder / "images/1.jpg", folder / "street.jpg")
    shutil.copy(folder / "set.json", folder / "lvis_v1_val.json")

    def train(config, name):
        words = (
            "--config-file",
            folder / "configs" / config,
            "OUTPUT_DIR",
            folder / "output" / name,
        )
        assert run_tool("train_net", *words, "MODEL.WEIGHTS", "", *SHORT) == (0, "")

    train("lvis_cascade_tde.yaml", "lvis_cascade_tde")
    train("lvis_cascade_baseline.yaml", "lvis_cascade_baseline")
    trained = folder / "output/lvis_cascade_tde"
    for name in ("output/shop", "output/tde", "output/factual", "output"):
        shutil.copytree(trained, folder / name, dirs_exist_ok=True)
    shutil.copy(trained / "model_final.pth", folder)
    for name in ("a.json", "b.json"):
        shutil.copy(trained / "inference/lvis_instances_results.json", folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", commands())
def test_command_runs(words, machine, monkeypatch):
    other = file_that_runs(words)
    if other:
        assert (Path(__file__).parent / other).exists()
        return
    monkeypatch.chdir(machine)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(machine))
    tool, *words = words
    if "--num-gpus" in words:
        at = words.index("--num-gpus")
        words[at : at + 2] = []
    if "lvis_v1_val" in words:  # a name of Detectron2's, with 1,203 classes
        at = words.index("lvis_v1_val")
        words[at : at + 1] = ["set.json", "--image-root", "images"]
    if "configs/lvis_cascade_baseline.yaml" in words and "model_final.pth" in words:
        words[words.index("model_final.pth")] = "output/lvis_cascade_baseline/model_final.pth"
    if tool == "tools/visualize_activation.py":
        words += ["--score-threshold", "0"]  # of a model that has seen four images
    if tool == "tools/train_net.py":
        words += [*SHORT, *NO_DOWNLOAD]
        if "MODEL.WEIGHTS" not in words:
            words += ["MODEL.WEIGHTS", ""]
    code, error = run_tool(Path(tool).stem, *words)
    assert code == 0, error
