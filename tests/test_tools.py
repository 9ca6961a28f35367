"""The command line tools, run as a user runs them, on a tiny mini_lvis."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from tde_det import cli
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis

TINY = Settings(num_classes=12, image_size=96, train_images=24, val_images=6, seed=1)
CONFIG = ("--config-file", "configs/mini_lvis_cascade_tde.yaml")
OPTS = (
    *("MODEL.ROI_HEADS.NUM_CLASSES", "12", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "4"),
    *("SOLVER.BASE_LR", "0.001", "TEST.DETECTIONS_PER_IMAGE", "30"),
    *("SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", "96"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    build_mini_lvis(str(root / "mini_lvis"), TINY)
    return root


def run(root, *command, **environment):
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(root),
        "PYTHONPATH": REPOSITORY,
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, *map(str, command)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    result = run(root, "tools/train_net.py", *CONFIG, "OUTPUT_DIR", out, *OPTS)
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result.stdout + result.stderr


def test_training_reports_and_writes(trained):
    out, log = trained
    assert "APr" in log and "iter: 3" in log
    metrics = json.loads((out / "inference/metrics.json").read_text())
    assert set(metrics) == {"bbox", "segm"} and {"AP", "APr", "APc", "APf"} <= set(metrics["bbox"])
    assert len(json.loads((out / "inference/lvis_instances_results.json").read_text())) > 6
    rows = (out / "inference/per_category_ap.csv").read_text().splitlines()
    assert len(rows) == 13 and rows[0].endswith("AP_bbox,AP_segm")
    state = torch.load(out / "model_final.pth", weights_only=False)["model"]
    for stage in range(3):
        mean = state[f"roi_heads.box_predictor.{stage}.adjustments.tde.feature_mean"]
        assert mean.abs().sum() > 0


def test_evaluation_repeats_the_numbers(root, trained, tmp_path):
    out, _ = trained
    weights = ("MODEL.WEIGHTS", out / "model_final.pth")
    command = ("tools/train_net.py", *CONFIG, "--eval-only", "OUTPUT_DIR", tmp_path)
    result = run(root, *command, *weights, *OPTS)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("metrics.json", "lvis_instances_results.json"):
        first = json.loads((out / "inference" / name).read_text())
        assert json.loads((tmp_path / "inference" / name).read_text()) == first


def test_resume_continues(root, trained):
    out, _ = trained
    command = ("tools/train_net.py", *CONFIG, "--resume", "OUTPUT_DIR", out)
    result = run(root, *command, *OPTS, "SOLVER.MAX_ITER", "5", "TEST.DETECTIONS_PER_IMAGE", "5")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Starting training from iteration 4" in result.stdout + result.stderr


@pytest.mark.parametrize("launcher", ["torchrun", "--num-gpus"])
def test_two_processes(root, tmp_path, launcher):
    """On the CPU with gloo; the mean must be that of all four images, not of one rank's two."""
    if launcher == "--num-gpus" and torch.cuda.is_available():
        pytest.skip("would train on GPUs")
    command = ["tools/train_net.py", *CONFIG]
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
    else:
        command += ["--num-gpus", "2"]
    loss = ("MODEL.LONG_TAIL.LOSS", "seesaw" if launcher == "torchrun" else "cross_entropy")
    result = run(root, *command, "OUTPUT_DIR", tmp_path, *OPTS, *loss)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "APr" in result.stdout + result.stderr and "Warning" not in result.stderr
    metrics = json.loads((tmp_path / "inference/metrics.json").read_text())
    assert metrics["bbox"]["AP"] is not None
    state = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    assert state["roi_heads.box_predictor.0.adjustments.tde.feature_mean"].abs().sum() > 0
    if launcher == "torchrun":  # 4 iterations of 4 images, two of them on the other rank
        samples = state["roi_heads.box_predictor.0.classification_loss.samples"]
        assert 4 * 2 * 64 < samples.sum() <= 4 * 4 * 64


def test_visualize_results(root, trained, tmp_path):
    out, _ = trained
    results = out / "inference/lvis_instances_results.json"
    command = ("tools/visualize_results.py", "--results", results, "--output", tmp_path)
    common = ("--limit", 3, "--score-threshold", 0.0)
    result = run(root, *command, *common, "--dataset", "mini_lvis_val", *CONFIG)
    assert result.returncode == 0, result.stderr[-3000:]
    pictures = sorted(tmp_path.glob("*.jpg"))
    assert len(pictures) == 3
    # Two panels of a picture enlarged to 480 pixels, below a caption and perhaps above labels.
    height, width, _ = cv2.imread(str(pictures[0])).shape
    assert height >= 480 + 26 and width == 2 * 480 + 4

    compared = ("--compare", f"TDE={results}", "--by-gain", "--format", "pdf")
    result = run(root, *command, *compared, *common, "--dataset", "mini_lvis_val", *CONFIG)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [path.read_bytes()[:5] for path in tmp_path.glob("*.pdf")] == 3 * [b"%PDF-"]
    assert "find no more rare objects" in result.stdout + result.stderr  # both are the same file
    result = run(root, *command, "--compare", results, "--dataset", "mini_lvis_val", *CONFIG)
    assert result.returncode == 1 and "TITLE=" in result.stderr

    path = root / "mini_lvis/mini_lvis_val.json"
    images = ("--image-root", root / "mini_lvis")
    result = run(root, *command, *common, "--dataset", path, *images)
    assert result.returncode == 0, result.stderr[-3000:]

    result = run(root, *command, "--dataset", path)
    assert result.returncode == 1 and "--image-root" in result.stderr
    train = root / "mini_lvis/mini_lvis_train.json"
    wrong = tmp_path / "wrong.json"
    entry = {"image_id": 999, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1.0}
    for content, message in (
        ([entry], "image 999"),
        ({}, "holds dict"),
        ([{}], "number 0 is wrong"),
    ):
        wrong.write_text(json.dumps(content))
        command = ("tools/visualize_results.py", "--results", wrong, "--output", tmp_path)
        result = run(root, *command, "--dataset", train, *images)
        assert result.returncode == 1 and message in result.stderr
        assert "Traceback" not in result.stderr


def test_demo_on_images_folder_and_video(root, trained, tmp_path):
    out, _ = trained
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for i in range(4):
        writer.write(np.full((64, 96, 3), 60 * i, np.uint8))
    writer.release()
    command = ("tools/demo.py", *CONFIG, "--output", tmp_path / "drawn")
    opts = ("MODEL.WEIGHTS", out / "model_final.pth", *OPTS)
    inputs = (root / "mini_lvis/val", video)
    result = run(root, *command, *opts, "--score-threshold", 0, "--input", *inputs)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 6
    drawn = cv2.VideoCapture(str(tmp_path / "drawn/clip_predictions.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and drawn.get(cv2.CAP_PROP_FPS) == 5
    # The same room below every frame: a video loses frames of another size.
    assert drawn.get(cv2.CAP_PROP_FRAME_HEIGHT) == 26 + 480 + 72

    broken = tmp_path / "broken.jpg"
    broken.write_bytes((root / "mini_lvis/val/000001.jpg").read_bytes()[:500])
    text = tmp_path / "text.txt"
    text.write_text("hello")
    for path, message in (
        (tmp_path / "none.jpg", "does not exist"),
        (broken, "cannot be read"),
        (text, "neither an image nor a video"),
    ):
        result = run(root, *command, "--input", path, *opts)
        assert result.returncode == 1 and message in result.stderr, result.stderr[-2000:]
        assert "Traceback" not in result.stderr
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.jpg", "c.jpg"):
        shutil.copy(root / "mini_lvis/val/000001.jpg", folder / name)
    shutil.copy(broken, folder / "b.jpg")
    (folder / "d.png").touch()
    inputs = ("--input", folder, "--output", tmp_path / "some")
    result = run(root, "tools/demo.py", *CONFIG, *inputs, *opts)
    *_, last = result.stderr.splitlines()
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last == f"error: 2 of 4 files are skipped: {folder}/b.jpg, {folder}/d.png"
    for name in ("b.jpg", "d.png"):
        assert f"warning: {folder}/{name} cannot be read as an image" in result.stderr
    drawn = {path.name for path in (tmp_path / "some").iterdir()}
    assert drawn == {"a_predictions.jpg", "c_predictions.jpg"}
    other = ("MODEL.ROI_BOX_HEAD.FC_DIM", "96", *OPTS)
    for weights, own_opts, message in (
        ("", OPTS, "no checkpoint is named: add MODEL.WEIGHTS"),
        (text, OPTS, "text.txt is no checkpoint that can be read"),
        (out / "model_final.pth", other, "the checkpoint has another shape for roi_heads."),
    ):
        opts = ("MODEL.WEIGHTS", weights, *own_opts)
        result = run(root, *command, "--input", video, *opts)
        assert result.returncode == 1 and message in result.stderr, result.stderr[-2000:]
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_export_model(root, trained, tmp_path, kind):
    """Of a calibrated checkpoint, without a data set."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    out, _ = trained
    weights = ("MODEL.WEIGHTS", tmp_path / "calibrated.pth", *OPTS)
    command = ("tools/calibrate.py", *CONFIG, "--adjust", "norcal gamma=0.6")
    result = run(
        root, *command, "--output", weights[1], "MODEL.WEIGHTS", out / "model_final.pth", *OPTS
    )
    assert result.returncode == 0, result.stderr[-2000:]
    command = ("tools/export_model.py", *CONFIG, "--format", kind, "--output")
    result = run(tmp_path, *command, tmp_path / "model", *weights)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "outputs differ from the model's by at most" in result.stdout
    assert "norcal gamma=0.6" in result.stdout + result.stderr and (tmp_path / "model").exists()
    sample = ("--sample-image", tmp_path / "none.jpg")
    result = run(tmp_path, *command, tmp_path / "other", *sample, *weights)
    assert result.returncode == 1 and "none.jpg cannot be read" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "other").exists()


def test_analyze_model(tmp_path):
    command = ("tools/analyze_model.py", *CONFIG, "--iterations", 1)
    result = run(tmp_path, *command, "--size", "64x96")
    assert result.returncode == 0 and "One image of 64×96, 100 proposals, 300 det" in result.stdout
    assert len([line for line in result.stdout.splitlines() if line.startswith("|")]) == 15
    for option, message in (("64", "is not of the form"), ("0x8", "is not of the form")):
        result = run(tmp_path, *command, "--size", option)
        assert result.returncode == 1 and message in result.stderr
        assert "Traceback" not in result.stderr


class TestFlawedCustomSets:
    """What datasets/README.md promises about flaws, from the command line to the metrics."""

    @pytest.fixture
    def flawed(self, root, tmp_path):
        """Run train_net.py on a copy of the tiny set after ``change(data)`` in both splits."""
        shutil.copytree(root / "mini_lvis", tmp_path / "mine")

        def run_changed(change):
            sets = []
            for split in ("train", "val"):
                path = tmp_path / f"mine/mini_lvis_{split}.json"
                data = json.loads(path.read_text())
                change(data, tmp_path / "mine")
                path.write_text(json.dumps(data))
                images = str(tmp_path / "mine")
                sets.append({"name": f"mine_{split}", "json": str(path), "image_root": images})
            names = ("DATASETS.TRAIN", "('mine_train',)", "DATASETS.TEST", "('mine_val',)")
            opts = ("OUTPUT_DIR", tmp_path / "out", "DATASETS.LVIS_CUSTOM", str(sets), *names)
            return run(root, "tools/train_net.py", *CONFIG, *opts, *OPTS)

        return run_changed

    def test_what_is_skipped(self, flawed, tmp_path):
        def change(data, folder):
            first = data["annotations"][0]
            next_id = len(data["annotations"]) + 1
            two_points = {**first, "id": next_id, "segmentation": [[1, 1, 9, 9]]}
            no_area = {**first, "id": next_id + 1, "bbox": [5, 5, 0, 0], "area": 0}
            empty = data["images"][1]["id"]
            kept = [a for a in data["annotations"] if a["image_id"] != empty]
            data["annotations"] = [*kept, two_points, no_area]
            for category in data["categories"]:
                del category["frequency"], category["image_count"]

        result = flawed(change)
        log = result.stdout + result.stderr
        assert result.returncode == 0, log[-3000:]
        for split in ("train", "val"):
            for reason in ("a box without area", "no polygon with at least 3 points"):
                assert f"mine_{split}: skipped 1 annotations with {reason}" in log
            assert f"mine_{split}: 1 of " in log
        assert json.loads((tmp_path / "out/inference/metrics.json").read_text())["segm"]["AP"] >= 0

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                lambda data, folder: (folder / data["images"][2]["file_name"]).unlink(),
                "1 of 24 image files.*\n.*train/000003.jpg does not exist",
            ),
            (
                lambda data, folder: os.truncate(folder / data["images"][2]["file_name"], 900),
                "1 of 24 image files.*\n.*train/000003.jpg is damaged",
            ),
            (
                lambda data, folder: data["annotations"][4].update(category_id=99),
                "annotation 5 has category_id 99, which 'categories' does not list",
            ),
        ],
    )
    def test_what_is_an_error(self, flawed, change, message):
        result = flawed(change)
        assert result.returncode == 1 and re.search(message, result.stderr), result.stderr[-2000:]
        assert "Traceback" not in result.stderr


class TestErrors:
    """Each ends at once, in one message without a traceback."""

    def fails(self, root, *args, message, **environment):
        result = run(root, "tools/train_net.py", *args, **environment)
        assert result.returncode in (1, 2)
        assert re.search(message, result.stderr), result.stderr[-2000:]
        assert "Traceback" not in result.stderr

    def test_lvis_is_missing(self, tmp_path):
        message = (
            f"{tmp_path}/lvis/lvis_v1_train.json does not exist.*DETECTRON2_DATASETS is {tmp_path}"
            ".*prepare_lvis.py.*mini_lvis"
        )
        self.fails(
            tmp_path, "--config-file", "configs/lvis_cascade_tde.yaml", "OUTPUT_DIR", tmp_path,
            message=message,
        )  # fmt: skip

    def test_lvis_images_are_missing(self, tmp_path):
        for folder in ("lvis", "coco/train2017"):
            (tmp_path / folder).mkdir(parents=True)
        data = {
            "categories": [{"id": 1}],
            "images": [
                {"id": i, "height": 8, "width": 8, "coco_url": f"http://x/train2017/{i}.jpg"}
                for i in range(3)
            ],
            "annotations": [],
        }
        for split in ("train", "val"):
            (tmp_path / f"lvis/lvis_v1_{split}.json").write_text(json.dumps(data))
        (tmp_path / "coco/train2017/1.jpg").touch()
        self.fails(
            tmp_path, "--config-file", "configs/lvis_cascade_tde.yaml", "OUTPUT_DIR", tmp_path,
            "MODEL.WEIGHTS", "",
            message=r"lvis_v1_train: 2 of 3 image files cannot be used:\n.*/0.jpg does not",
        )  # fmt: skip

    def test_mini_lvis_is_missing(self, tmp_path):
        message = "neither in the current folder nor.*build_mini_lvis.py"
        self.fails(tmp_path, *CONFIG, "OUTPUT_DIR", tmp_path, message=message)

    def test_number_of_classes(self, root, tmp_path):
        message = "has 12 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 60. Set it to 12"
        self.fails(root, *CONFIG, "OUTPUT_DIR", tmp_path, message=message)

    def test_unknown_dataset(self, root, tmp_path):
        opts = ("OUTPUT_DIR", tmp_path, *OPTS, "DATASETS.TEST", "('mini_lvis_vla',)")
        self.fails(root, *CONFIG, *opts, message="No data set is called 'mini_lvis_vla'")

    def test_config_file(self, root):
        self.fails(root, "--config-file", "no.yaml", message="no.yaml does not exist")

    def test_number_of_gpus(self, root):
        self.fails(root, *CONFIG, "--num-gpus", "999", message="--num-gpus 999: this machine has")

    def test_images_of_all_processes(self, root, tmp_path):
        opts = ("OUTPUT_DIR", tmp_path, *OPTS, "SOLVER.IMS_PER_BATCH", "3", "--num-gpus=2")
        self.fails(root, *CONFIG, *opts, message="take a multiple of 2")


TOOLS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("tools", "datasets")
    for path in pathlib.Path(REPOSITORY, folder).glob("*.py")
)
# Runs a tool in this process and says what that has imported; nothing may be installed or built.
RUNNER = """
import atexit, runpy, subprocess, sys, time
sys.argv = sys.argv[1:]
subprocess.run = subprocess.Popen = None
heavy = ("torch", "detectron2", "matplotlib", "pycocotools")
atexit.register(lambda: print("CPU", time.process_time(), [m for m in heavy if m in sys.modules]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", TOOLS)
def test_help_answers_at_once(tool, tmp_path):
    result = run(tmp_path, "-c", RUNNER, tool, "--help")
    *text, cpu = result.stdout.splitlines()
    assert result.returncode == 0 and not result.stderr
    assert cpu.endswith(" []"), "imported for a help text"
    assert float(cpu.split()[1]) < 2
    assert os.path.basename(tool) in "".join(text[1:]), "no example"
    options = {line.split()[0] for line in text if line.startswith("  --")}
    assert tool == "tools/train_net.py" or not options & {"--resume", "--eval-only"}


class TestCommandLine:
    def parse(self, *words):
        parser = cli.make_parser("A tool.", "tool.py", "default.yaml")
        parser.add_argument("--input", nargs="+")
        parser.add_argument("--limit", type=int)
        return cli.parse_args(parser, words)

    def test_pairs_stand_anywhere(self):
        words = ("MODEL.WEIGHTS", "m.pth", "--input", "a", "SEED", "3", "b", "--limit", "2")
        for args in (
            self.parse(*words, "SOLVER.STEPS", "()"),
            self.parse("SOLVER.STEPS", "()", *words),
        ):
            assert args.input == ["a", "b"] and args.limit == 2
            pairs = dict(zip(args.opts[::2], args.opts[1::2]))
            assert pairs == {"MODEL.WEIGHTS": "m.pth", "SEED": "3", "SOLVER.STEPS": "()"}
        assert self.parse().opts == [] and self.parse().config_file == "default.yaml"
        assert self.parse("MODEL.TDE.ALPHA", "-1").opts == ["MODEL.TDE.ALPHA", "-1"]

    @pytest.mark.parametrize(
        "words, message",
        [
            (("--limit", "1", "MODEL.WEIGHTS"), "MODEL.WEIGHTS has no value"),
            (("model.weights", "m.pth"), "unrecognized arguments: model.weights m.pth"),
            (("--opts", "MODEL.WEIGHTS", "m.pth"), "unrecognized arguments: --opts"),
        ],
    )
    def test_errors(self, words, message, capsys):
        with pytest.raises(SystemExit):
            self.parse(*words)
        assert message in capsys.readouterr().err


def test_no_warnings_that_a_user_can_do_nothing_about(trained):
    """Of a training with its evaluation; the one about CUDA says what has been done."""
    _, log = trained
    warnings = [line for line in log.splitlines() if re.search("warn|^W[0-9]{4} ", line, re.I)]
    assert all("has no usable CUDA" in line for line in warnings), warnings


def test_build_mini_lvis(tmp_path):
    command = ("datasets/build_mini_lvis.py", "--num-classes", 3, "--image-size", 64)
    result = run(tmp_path, *command, "--train-images", 4, "--val-images", 2)
    assert result.returncode == 0 and f"is in {tmp_path}/mini_lvis" in result.stdout
    built = json.loads((tmp_path / "mini_lvis/mini_lvis_val.json").read_text())["info"]["settings"]
    assert built == Settings(3, 64, 4, 2)._asdict()
    result = run(tmp_path, "datasets/build_mini_lvis.py")
    assert result.returncode == 1 and f"was not built with {Settings()}" in result.stderr


def test_import_without_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None\n"
        "try:\n    import tde_det\nexcept ImportError as e:\n    print(e)"
    )
    result = run(".", "-c", code)
    assert len(result.stdout.splitlines()) == 1
    assert "pip install" in result.stdout and "facebookresearch/detectron2@02b5c4e" in result.stdout
