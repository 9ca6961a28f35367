"""What a user may give by mistake: one message that names it, exit code ≠ 0, nothing lost.

Every case runs a tool's ``main`` in this process. Another exception than ``SystemExit``, which a
user would see as a traceback, fails the test.
"""

import io
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import (
    HEIGHT,
    SQUARE,
    WIDTH,
    annotation,
    run_tool,
    small_set,
    write_small_set,
)

from tde_det.data.read_image import read_image
from tde_det.engine import load_model, read_config

NAN, INF = float("nan"), float("inf")
ROW = {"image_id": 1, "category_id": 70, "score": 0.5, "bbox": [1, 2, 3, 4]}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A data set, a config and a checkpoint that nothing is wrong with."""
    folder = write_small_set(tmp_path_factory.mktemp("bad_input") / "small")
    model = load_model(read_config(str(folder / "small.yaml")))
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    (folder / "results.json").write_text(json.dumps([ROW]))
    return folder


def content_of(folder):
    """All files but those of the log, which only grows."""
    files = (path for path in folder.rglob("*") if path.is_file() and "output" not in path.parts)
    return {path: path.read_bytes() for path in files}


# --------------------------------------------------------------------------- what a case gives


def option(*words):
    """Options and KEY VALUE pairs of a training."""
    return lambda small, tmp: ("train_net", "--config-file", small / "small.yaml", *words)


def config(content):
    def words(small, tmp):
        (tmp / "x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return "train_net", "--config-file", tmp / "x.yaml"

    return words


def annotations(change):
    """A training set after ``change(data)``, or its text."""

    def words(small, tmp):
        data = small_set()
        if isinstance(change, str):
            data = change
        else:
            change(data)
        folder = write_small_set(tmp / "own", data)
        return "train_net", "--config-file", folder / "small.yaml"

    return words


def image(content):
    """A training set one of whose images has other bytes."""

    def words(small, tmp):
        folder = write_small_set(tmp / "own")
        path = folder / "images/2.jpg"
        path.write_bytes(content(path.read_bytes()))
        return "train_net", "--config-file", folder / "small.yaml"

    return words


def results(rows):
    def words(small, tmp):
        (tmp / "r.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
        return "evaluate_results", "--json-file", small / "set.json", "--results", tmp / "r.json"

    return words


def row(**changes):
    return results([ROW, {**ROW, **changes}])


def checkpoint(write, name="x.pth", *words):
    """An evaluation of a file that ``write(path, state)`` makes."""

    def given(small, tmp):
        write(tmp / name, torch.load(small / "model.pth", weights_only=True)["model"])
        command = ("train_net", "--eval-only", "--config-file", small / "small.yaml")
        return *command, "MODEL.WEIGHTS", tmp / name, *words

    return given


def command(tool, *words):
    """A command line, with {small} and {tmp} for the folders."""
    return lambda small, tmp: (tool, *(str(w).format(small=small, tmp=tmp) for w in words))


def resumed(content, norm):
    """A training resumed from what ``last_checkpoint`` holds."""

    def words(small, tmp):
        (tmp / "output").mkdir()
        (tmp / "output/last_checkpoint").write_bytes(content)
        opts = ("OUTPUT_DIR", tmp / "output", "MODEL.RESNETS.NORM", norm)
        return "train_net", "--resume", "--config-file", small / "small.yaml", *opts

    return words


def at(value):
    """A function that writes bytes."""
    return lambda path, state: path.write_bytes(value)


def saved(change):
    return lambda path, state: torch.save(change(state), path)


def first(kind, **changes):
    return lambda data: data[kind][0].update(changes)


def encoded(kind, array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


CONFIG = ("--config-file", "{small}/small.yaml")
WEIGHTS = ("MODEL.WEIGHTS", "{small}/model.pth")
SHOW = ("--results", "{small}/results.json", "--output", "{tmp}/out")

CASES = [
    # Config files.
    (config(""), "x.yaml is no mapping of keys to values"),
    (config("hello"), "x.yaml is no mapping of keys to values"),
    (config("- 1"), "x.yaml is no mapping of keys to values"),
    (config("_BASE_: x.yaml"), "x.yaml is a _BASE_ of itself"),
    (config("_BASE_: gone.yaml"), "gone.yaml"),
    (config("MODEL: [1"), "x.yaml: .*line 1"),
    (config(b"\xff\xfe\x00"), "x.yaml: "),
    (config("MODEL: {LONG_TAIL: {SEESAW: {P: 1}}}"), "SEESAW.P. Write 1.0, not 1"),
    (config("MODEL: {LONG_TAIL: 3}"), "MODEL.LONG_TAIL is a section with keys, not a value"),
    (config("MODEL: {TDE: {ALPHA: null}}"), "MODEL.TDE.ALPHA has no value"),
    (config("MODEL: {LONG_TAIL: {EQLV2: {MU: null}}}"), "LONG_TAIL.EQLV2.MU has no value"),
    (config("MODEL: {TED: {ALPHA: 1.0}}"), "MODEL.TED"),
    # Config values.
    (option("MODEL.TDE.ALPA", "0"), "MODEL.TDE.ALPA"),
    (option("MODEL.TDE.ALPHA", "much"), "MODEL.TDE.ALPHA"),
    (option("MODEL.TDE.ALPHA"), "MODEL.TDE.ALPHA has no value"),
    (option("MODEL.TDE.MU", "2.0"), r"MODEL.TDE: mu must be in \[0, 1\), got 2.0"),
    (option("MODEL.TDE.NUM_HEADS", "3"), "MODEL.TDE: num_heads must be at least 1 and divide"),
    (option("MODEL.LONG_TAIL.LOSS", "x"), "MODEL.LONG_TAIL.LOSS must be one of .*, got 'x'"),
    (option("MODEL.ADJUSTMENTS", "['x']"), "MODEL.ADJUSTMENTS: 'x' is no adjustment; known are"),
    (option("MODEL.ADJUSTMENTS", "x"), "MODEL.ADJUSTMENTS. Write a list"),
    (option("MODEL.WEIGHTS", "no.pth"), "MODEL.WEIGHTS is no.pth, which does not exist"),
    (option("MODEL.WEIGHTS", "/"), "MODEL.WEIGHTS is /, which does not exist"),
    (option("MODEL.WEIGHTS", "catalog://x"), "catalog://x cannot be downloaded"),
    (option("--eval-only"), "no checkpoint is named: add MODEL.WEIGHTS"),
    (option("MODEL.META_ARCHITECTURE", "X"), "MODEL.META_ARCHITECTURE is 'X'; there are: "),
    (option("MODEL.ROI_HEADS.NAME", "TDEHeads"), "there are: CascadeROIHeads, "),
    (option("MODEL.ROI_BOX_HEAD.NAME", "X"), "MODEL.ROI_BOX_HEAD.NAME is 'X'; there are: "),
    (option("MODEL.RESNETS.DEPTH", "19"), r"MODEL.RESNETS.DEPTH 19 does not fit"),
    (option("MODEL.RESNETS.NORM", "XN"), r"MODEL.RESNETS.NORM 'XN' does not fit"),
    (option("MODEL.RPN.IN_FEATURES", "['p9']"), r"MODEL.RPN.IN_FEATURES \['p9'\] does not fit"),
    (option("MODEL.FPN.FUSE_TYPE", "x"), r"in MODEL does not fit .*fuse_type in {"),
    (option("MODEL.DEVICE", "tpu"), "MODEL.DEVICE is 'tpu'"),
    (option("INPUT.FORMAT", "XYZ"), "INPUT.FORMAT must be one of BGR, RGB, L, .*, got 'XYZ'"),
    (option("INPUT.MASK_FORMAT", "x"), "INPUT.MASK_FORMAT must be one of polygon, bitmask"),
    (option("INPUT.MIN_SIZE_TEST", "-5"), "INPUT.MIN_SIZE_TEST must be at least 0, got -5"),
    (option("INPUT.MIN_SIZE_TRAIN", "()"), "INPUT.MIN_SIZE_TRAIN must be a list of sizes"),
    (option("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH must be at least 1, got 0"),
    (option("SOLVER.MAX_ITER", "-1"), "SOLVER.MAX_ITER must be at least 1, got -1"),
    (option("SOLVER.STEPS", "('a',)"), "SOLVER.STEPS must be a list of iterations"),
    (option("SOLVER.MOMENTUM", "-1.0"), "SOLVER.MOMENTUM must be at least 0, got -1.0"),
    (option("SOLVER.LR_SCHEDULER_NAME", "x"), "SOLVER.LR_SCHEDULER_NAME 'x' does not fit"),
    (option("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS must be at least 0"),
    (option("DATALOADER.SAMPLER_TRAIN", "X"), "DATALOADER.SAMPLER_TRAIN is 'X'; known are"),
    (option("MODEL.RPN.NMS_THRESH", "5.0"), r"MODEL.RPN.NMS_THRESH must be in \[0, 1\]"),
    (option("DATASETS.TEST", "('vla',)"), "No data set is called 'vla'"),
    (option("DATASETS.LVIS_CUSTOM", "[1]"), "DATASETS.LVIS_CUSTOM is a list of"),
    (option("TEST.LVIS_BACKEND", "x"), "TEST.LVIS_BACKEND is 'x'; known are"),
    (option("OUTPUT_DIR", "/proc/x"), "OUTPUT_DIR /proc/x cannot be made"),
    (option("MODEL.LOAD_PROPOSALS", "True"), "DATASETS.PROPOSAL_FILES_TRAIN must name 1 files"),
    # Annotations.
    (annotations("[]"), "set.json is not in LVIS format: .*got `array`"),
    (annotations('{"images": [{"id"'), "set.json cannot be read as json: .*after 17 bytes"),
    (annotations("[" * 100_000), "set.json"),
    (annotations("\x00"), "set.json cannot be read as json"),
    (
        annotations(lambda d: d["annotations"].append(annotation(id=9, category_id=6))),
        "annotation 9 has category_id 6",
    ),
    (
        annotations(lambda d: d["annotations"].append(annotation(id=9, image_id=77))),
        "annotation 9 has image_id 77",
    ),
    (annotations(lambda d: d["annotations"].append(annotation())), "id 1 occurs more than once"),
    (annotations(lambda d: d["images"].append(d["images"][0])), "more than once in 'images'"),
    (annotations(lambda d: d.pop("images")), "missing required field `images`"),
    (annotations(lambda d: d.pop("categories")), "missing required field `categories`"),
    (annotations(lambda d: d.update(images=[])), r"length >= 1 - at `\$.images`"),
    (annotations(lambda d: d["images"][1].pop("height")), r"`height` - at `\$.images\[1\]"),
    (annotations(first("images", height=2**62)), r"`float` <= 1000000.*height"),
    (annotations(first("categories", image_count=2**63)), "image_count"),
    (annotations(lambda d: d["images"][1].pop("file_name")), "image 2 has no file_name"),
    (annotations(first("images", file_name="gone.jpg")), "gone.jpg does not exist"),
    (annotations(first("images", file_name="a\0b")), "1 of 3 image files"),
    (annotations(first("images", width=61)), "1.jpg is 60×40 pixels"),
    (annotations(first("images", id="a")), "some ids of 'images' are numbers and some"),
    (annotations(first("images", id=2**70)), r"9007199254740992 - at `\$.images\[0\].id"),
    (annotations(first("images", width=INF)), r"<= 1000000.0 - at `\$.images\[0\].width"),
    (annotations(first("images", width=60.5)), r"multiple of 1.0 - at `\$.images\[0\].width"),
    (annotations(first("images", neg_category_ids=5)), r"images\[0\].neg_category_ids"),
    (annotations(first("categories", name=None)), r"got `null` - at `\$.categories\[0\].name"),
    (annotations(first("categories", frequency="x")), r"\(r\|c\|f\).* at `\$.categories\[0\].freq"),
    (annotations(first("categories", image_count="4")), r"got `str` - .*\[0\].image_count"),
    (annotations(first("annotations", bbox=[1, 2, 3])), r"length >= 4 - at .*\[0\].bbox"),
    (annotations(first("annotations", bbox=[1, 2, 3, None])), r"`null` - at .*bbox\[3\]"),
    (annotations(first("annotations", image_id=[1])), r"got `array` - at .*\[0\].image_id"),
    (annotations(first("annotations", category_id={})), r"got `object` - .*\.category_id"),
    (annotations(first("annotations", area="4")), r"got `str` - at .*\[0\].area"),
    (annotations(first("annotations", iscrowd="0")), r"got `str` - at .*\[0\].iscrowd"),
    (annotations(lambda d: d["annotations"][0].pop("category_id")), "field `category_id`"),
    (annotations(lambda d: d["annotations"][0].pop("image_id")), "field `image_id`"),
    (annotations(lambda d: d["annotations"][0].pop("segmentation")), "MODEL.MASK_ON False"),
    (annotations(first("annotations", segmentation=SQUARE)), "annotation 1 has a segm"),
    (annotations(first("annotations", segmentation=[["a"] * 6])), "neither RLE nor a list"),
    (annotations(first("annotations", segmentation=True)), "1 has a segmentation that is"),
    (
        annotations(first("annotations", segmentation=[[*SQUARE[:-1], NAN]])),
        "annotation 1 has a segmentation that is neither.* of finite numbers",
    ),
    (
        annotations(first("annotations", segmentation=[[*SQUARE[:-1], INF]])),
        "annotation 1 has a segmentation that is neither.* of finite numbers",
    ),
    (
        annotations(lambda d: d["annotations"][1]["segmentation"].update(size=[WIDTH, HEIGHT])),
        "annotation 2 has a mask of size",
    ),
    *(
        (
            annotations(lambda d, c=counts: d["annotations"][1]["segmentation"].update(counts=c)),
            f"annotation 2 has {message}",
        )
        for counts, message in (
            ([5], "an RLE whose counts do not add up"),
            ([-5, HEIGHT * WIDTH + 5], "a segmentation that is neither RLE nor"),
            ("garbage", "an RLE whose counts do not add up"),
            ("ünsinn", "an RLE whose counts do not add up"),
            ("", "an RLE whose counts do not add up"),
        )
    ),
    (
        annotations(lambda d: d["annotations"][1]["segmentation"].pop("counts")),
        "annotation 2 has a segmentation that is neither RLE nor",
    ),
    # Images of a data set.
    (image(lambda content: b""), "1 of 3 image files .*\n.*2.jpg is damaged: cannot identify"),
    (image(lambda content: b"hello"), "2.jpg is damaged: cannot identify image file"),
    (image(lambda content: content[:500]), "2.jpg is damaged: Truncated"),
    (image(lambda content: encoded("PNG", np.zeros((HEIGHT, WIDTH), np.uint16))), "8 bits"),
    (image(lambda content: encoded("GIF", np.zeros((1, 1), np.uint8))), "2.jpg is 1×1 pixels"),
    # Results.
    (results("{}"), "r.json is no results file: it holds dict, no list"),
    (results("[1"), "r.json cannot be read as json: .*truncated"),
    (results(""), "r.json cannot be read as json"),
    (results([1]), "number 0 is wrong"),
    (results([{}]), "number 0 is wrong: .*`image_id`"),
    (row(image_id=123), "do not list: 123"),
    (row(image_id=None), "number 1 is wrong: .*null.*image_id"),
    (row(score=None), "number 1 is wrong: .*null.*score"),
    (row(score="0.5"), "number 1 is wrong: .*str.*score"),
    (row(bbox=[1, 2, 3]), "number 1 is wrong: .*length 4.*bbox"),
    (row(bbox=[1, 2, 3, "4"]), "number 1 is wrong: .*str.*bbox"),
    (row(segmentation=3), "number 1 is wrong: its 'segmentation' is neither RLE nor polygons"),
    (row(segmentation={"size": [3, 3]}), "neither RLE nor polygons: .*counts"),
    (row(segmentation={"size": [-9, 9], "counts": "0"}), "neither RLE nor polygons: .*size"),
    (row(segmentation={"size": [9, 9], "counts": "o" * 60}), "'segmentation'"),
    (row(bbox=None), "number 1 is wrong: it has a 'bbox'|number 1 is wrong: .*the reverse"),
    (row(category_id=[1]), "number 1 is wrong: .*array.*category_id"),
    (row(segmentation="abc"), "neither RLE nor polygons"),
    (row(segmentation={"size": [9, 9], "counts": "!!!!"}), "counts that are no RLE of its size"),
    (row(segmentation={"size": [9, 9], "counts": [5, 6]}), "counts that are no RLE of its size"),
    (row(segmentation=[[1e9, 1, 2, 3, 4, 5]]), "beyond 1,000,000 pixels"),
    (row(segmentation=[[NAN, 1, 2, 3, 4, 5]]), "not finite"),
    # Checkpoints; tests/test_untrusted_files.py has those that would run a program.
    (checkpoint(at(b"")), "x.pth is no checkpoint that can be read"),
    (checkpoint(at(b"hello")), "x.pth is no checkpoint that can be read"),
    (checkpoint(saved(lambda state: [1])), "x.pth is no checkpoint that can be read"),
    (checkpoint(saved(lambda state: 5)), "x.pth is no checkpoint that can be read"),
    (checkpoint(saved(lambda state: {"model": [1]})), "x.pth is no checkpoint that can be read"),
    (checkpoint(saved(lambda state: None)), "x.pth is no checkpoint that can be read"),
    (checkpoint(saved(lambda state: {"model": 5})), "x.pth is no checkpoint that can be read"),
    (checkpoint(saved(lambda state: {"model": {1: 2}})), "x.pth is no checkpoint that can be"),
    (checkpoint(saved(lambda state: {"model": {"a": "b"}})), "x.pth is no checkpoint that can"),
    (
        checkpoint(lambda path, state: path.write_bytes(pickle.dumps(5)), "x.pkl"),
        "x.pkl: it is no checkpoint of Detectron2, Caffe2 or pycls",
    ),
    (checkpoint(at(b"hello"), "x.pkl"), "x.pkl: it is not read"),
    (checkpoint(at(b"hello"), "x.safetensors"), "x.safetensors: it cannot be read as .safetensors"),
    (checkpoint(at(b""), "x.safetensors"), "x.safetensors: it cannot be read as .safetensors"),
    (
        checkpoint(saved(lambda s: s), "x.pth", "MODEL.ROI_BOX_HEAD.FC_DIM", "24"),
        "x.pth: the checkpoint has another shape for roi_heads.*give the config",
    ),
    (
        checkpoint(lambda path, state: (torch.save(state, path), os.truncate(path, 5000))),
        "x.pth is no checkpoint that can be read",
    ),
    *(
        (resumed(content, norm), "no checkpoint in .*output is whole: do not resume")
        for content in (b"\xff\x00\xfe", b"gone.pth", b"", b"a\0b")
        for norm in ("BN", "FrozenBN")
    ),
    # Command lines.
    (command("train_net"), "--config-file"),
    (command("train_net", *CONFIG, "--gpus", "2"), "unrecognized arguments: --gpus"),
    (command("train_net", *CONFIG, "model.weights", "x"), "unrecognized arguments: model.weights"),
    (command("train_net", "--config-file", "no.yaml"), "no.yaml does not exist"),
    (command("train_net", "--config-file", "/"), "/ does not exist"),
    (
        command("demo", *CONFIG, *WEIGHTS, "--input", "{tmp}/no.jpg", "--output", "{tmp}/out"),
        "no.jpg does not exist",
    ),
    (
        command("demo", *CONFIG, *WEIGHTS, "--input", "{tmp}", "--output", "{tmp}/out"),
        "holds no images",
    ),
    (
        command("demo", *CONFIG, "--input", "{small}/images", "--output", "{tmp}/out"),
        "no checkpoint is named: add MODEL.WEIGHTS",
    ),
    (
        command("calibrate", *CONFIG, *WEIGHTS, "--adjust", "x", "--output", "{tmp}/x.pth"),
        "--adjust: 'x' is no adjustment",
    ),
    (
        command(
            *("calibrate", *CONFIG, *WEIGHTS, "--adjust", "norcal", "--output"),
            "{small}/model.pth",
        ),
        "model.pth exists already",
    ),
    (
        command("sweep", *CONFIG, *WEIGHTS, "--adjust", "norcal gamma=-1"),
        "gamma must be at least 0",
    ),
    (command("sweep", *CONFIG, *WEIGHTS), "one of the arguments --adjust --recommend is required"),
    (
        command("export_model", *CONFIG, *WEIGHTS, "--output", "{tmp}/x", "--format", "tflite"),
        "invalid choice: 'tflite'",
    ),
    (
        command(
            *("export_model", *CONFIG, *WEIGHTS, "--output", "{tmp}/x"),
            *("--sample-image", "{small}/set.json"),
        ),
        "set.json cannot be read as an image",
    ),
    (command("analyze_model", *CONFIG, "--size", "0x8"), "--size 0x8 is not of the form"),
    (
        command("visualize_results", *SHOW, "--dataset", "{small}/set.json"),
        "--dataset is a json: say with --image-root",
    ),
    (command("visualize_results", *SHOW, "--dataset", "nope"), "No data set is called 'nope'"),
    (
        command("evaluate_results", "--json-file", "no.json", "--results", "no.json"),
        "no.json does not exist",
    ),
    (
        command(
            *("evaluate_results", "--json-file", "{small}/set.json"),
            *("--results", "{small}/results.json", "--output", "{small}/results.json"),
        ),
        "would overwrite what is evaluated",
    ),
    (
        command("train_classifier", "--data", "folder", "--root", "{tmp}/no"),
        "no is no folder of one folder of images per class",
    ),
    (command("train_classifier", "--data", "list"), "--data list needs --root"),
]


@pytest.mark.parametrize("given, message", CASES, ids=[m[:40] for _, m in CASES])
def test_bad_input(small, tmp_path, monkeypatch, given, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = given(small, tmp_path)
    before = {**content_of(small), **content_of(tmp_path)}
    code, error = run_tool(*words)
    assert code != 0 and re.search(message, error, re.DOTALL), error
    # All that is said: a warning or the progress of a check may come before it.
    assert error.count("error: ") == 1 and "Traceback" not in error
    after = {**content_of(small), **content_of(tmp_path)}
    assert {path: after.get(path) for path in before} == before


def test_there_are_enough():
    assert len(CASES) >= 80


class TestImages:
    """Those that Pillow knows are read; the others are named, and the rest goes on."""

    COLOURS = np.array(
        [[[200, 30, 90], [10, 250, 0], [7, 8, 9]], [[1, 2, 3], [255, 0, 4], [6, 60, 99]]]
    )

    def write(self, folder):
        """Image files of all kinds, and the ``uint8[H, W, 3]`` RGB that each shows."""
        colours = self.COLOURS.astype(np.uint8)
        picture, wide = (
            Image.fromarray(colours),
            np.array([[0, 128, 129, 385, 65535, 25700]], np.uint16),
        )
        frames = [picture, Image.new("RGB", (3, 2))]
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the first row is the right column
        transparent = np.dstack([colours, np.array([[0, 9, 255], [1, 2, 3]], np.uint8)])
        grey = np.array([[round(v / 257) for v in wide[0].tolist()]])
        palette = picture.quantize(6)
        Image.fromarray(wide).save(folder / "grey16.png")
        Image.fromarray(wide).save(folder / "grey16.tif")
        Image.fromarray(transparent).save(folder / "rgba.png")
        picture.save(folder / "turned.png", exif=exif)
        palette.save(folder / "palette.png", transparency=1)
        picture.save(folder / "moving.gif", save_all=True, append_images=frames[1:])
        picture.save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
        Image.fromarray(colours[:1, :1]).save(folder / "tiny.png")
        Image.fromarray(colours[:, :, 0]).save(folder / "grey.png")
        Image.fromarray(colours[:, :, 0] > 50).save(folder / "bits.png")
        return {
            **{f"grey16.{kind}": np.dstack([grey] * 3) for kind in ("png", "tif")},
            "rgba.png": colours,
            "turned.png": np.rot90(colours, -1),
            "palette.png": np.array(palette.convert("RGB")),
            "moving.gif": colours,
            "moving.webp": colours,
            "cmyk.jpg": np.full((8, 8, 3), [255, 0, 0]),
            "tiny.png": colours[:1, :1],
            "grey.png": np.dstack([colours[:, :, 0]] * 3),
            "bits.png": 255 * np.dstack([colours[:, :, 0] > 50] * 3),
        }

    def test_what_is_read(self, tmp_path):
        for name, expected in self.write(tmp_path).items():
            image, limit = read_image(str(tmp_path / name), "RGB"), 2 if "jpg" in name else 0
            assert image.dtype == np.uint8 and image.shape == expected.shape, name
            assert abs(image.astype(int) - expected).max() <= limit, name
            assert np.array_equal(read_image(str(tmp_path / name)), image[:, :, ::-1]), name

    def write_broken(self, folder, good):
        (folder / "empty.jpg").touch()
        (folder / "text.jpg").write_text("hello")
        (folder / "cut.jpg").write_bytes(good.read_bytes()[:900])
        Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tif")
        Image.fromarray(np.ones((10, 20_000, 3), np.uint8)).save(folder / "long.png")
        return {
            "cut.jpg": "truncated",
            "empty.jpg": "cannot identify",
            "float.tif": "32 bits",
            "long.png": "an image of 20000×10 has no pixel left at INPUT.MIN_SIZE_TEST",
            "text.jpg": "cannot identify",
        }

    def test_demo_draws_the_others(self, small, tmp_path):
        good = self.write(tmp_path)
        bad = self.write_broken(tmp_path, small / "images/1.jpg")
        words = ("--input", tmp_path, tmp_path / "moving.gif", "--output", tmp_path / "out")
        words += ("--config-file", small / "small.yaml", "MODEL.WEIGHTS", small / "model.pth")
        code, error = run_tool("demo", *words)
        *warnings, last = [
            line for line in error.splitlines() if "error: " in line or ": --" in line
        ]
        total = len(good) + len(bad)
        files = ", ".join(str(tmp_path / name) for name in sorted(bad))
        assert code == 1 and last == f"error: {len(bad)} of {total} files are skipped: {files}"
        for name, reason in bad.items():
            assert re.search(f"warning: .*{name}.*{reason}", error), name
        assert len(list((tmp_path / "out").iterdir())) == len(good)
        words = ("INPUT.MIN_SIZE_TEST", 800, "INPUT.MAX_SIZE_TEST", 1333, *words[3:])
        assert run_tool("demo", "--input", tmp_path / "long.png", *words)[0] == 0

    def test_a_data_set_of_such_images_is_trained_on_and_evaluated(self, tmp_path):
        folder = write_small_set(tmp_path / "own")
        first, second = Image.open(folder / "images/1.jpg"), Image.open(folder / "images/2.jpg")
        first.convert("CMYK").save(folder / "images/1.jpg")
        second.convert("RGBA").quantize(50).save(folder / "images/2.jpg", "PNG", transparency=3)
        code, error = run_tool("train_net", "--config-file", folder / "small.yaml")
        assert code == 0, error
        assert (folder / "output/inference/metrics.json").exists()

    def test_a_long_image_in_a_data_set_is_named(self, tmp_path):
        data = small_set()
        data["images"][2].update(width=20_000, height=10)
        folder = write_small_set(tmp_path / "own", data)
        Image.fromarray(np.ones((10, 20_000, 3), np.uint8)).save(folder / "images/3.jpg")
        words = ("--config-file", folder / "small.yaml")
        code, error = run_tool("train_net", *words)  # trains on images with annotations alone
        assert code == 1 and "images/3.jpg cannot be used" in error

    def test_visualize_results_draws_the_others(self, small, tmp_path):
        folder = write_small_set(tmp_path / "own")
        (folder / "images/2.jpg").write_text("hello")
        Image.new("RGB", (9, 9)).save(folder / "images/3.jpg")
        words = ("--results", small / "results.json", "--output", tmp_path / "out")
        words += ("--dataset", folder / "set.json", "--image-root", folder / "images")
        code, error = run_tool("visualize_results", *words)
        files = ", ".join(str(folder / f"images/{i}.jpg") for i in (2, 3))
        assert code == 1 and error.endswith(f"error: 2 of 3 images are skipped: {files}"), error
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.jpg"]
