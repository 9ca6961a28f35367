"""Run tools in this process, on three images and a small model: many inputs in little time."""

import contextlib
import importlib.util
import inspect
import io
import json
import os
import sys
import warnings

import numpy as np
import pycocotools.mask as mask_util
import yaml
from conftest import REPOSITORY
from PIL import Image

HEIGHT, WIDTH = 40, 60
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": [],
    "SOLVER.WARMUP_ITERS": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}


def square_rle(compressed=True):
    """A mask of 20×20 pixels, as compressed or uncompressed RLE."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:30, 10:30] = 1
    if compressed:
        return {"size": [HEIGHT, WIDTH], "counts": mask_util.encode(mask)["counts"].decode()}
    flat = mask.ravel(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, flat.size]
    return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends]).tolist()}


def annotation(**changes):
    box = {"bbox": [10.0, 10.0, 20.0, 20.0], "area": 400.0, "segmentation": [SQUARE]}
    return {"id": 1, "image_id": 1, "category_id": 70, **box, **changes}


def small_set():
    """An LVIS-format json of 3 images and 3 annotations."""
    return {
        "categories": [{"id": 70, "name": "late"}, {"id": 5, "name": "early"}],
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(1, 4)
        ],
        "annotations": [
            annotation(),
            annotation(id=2, image_id=2, category_id=5, segmentation=square_rle()),
            annotation(id=3, image_id=2, segmentation=square_rle(compressed=False)),
        ],
    }


def write_small_set(folder, content=None):
    """Write ``set.json``, its images, and ``small.yaml``, which trains on it, to a new folder."""
    (folder / "images").mkdir(parents=True)
    for i in range(1, 4):
        pixels = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.jpg")
    text = content if isinstance(content, str) else json.dumps(content or small_set())
    (folder / "set.json").write_text(text)
    name = folder.name
    entry = {"name": name, "json": str(folder / "set.json"), "image_root": str(folder / "images")}
    config = {"_BASE_": f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"}
    sets = {"LVIS_CUSTOM": [entry], "TRAIN": [name], "TEST": [name]}
    options = {f"DATASETS.{key}": value for key, value in sets.items()}
    for key, value in {**SMALL, **options, "OUTPUT_DIR": str(folder / "output")}.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    return folder


def run_tool(tool, *words):
    """Run ``tools/TOOL.py`` in this process.

    Returns:
        exit code, and what went to standard error. Other exceptions, which a user would see as a
        traceback, are raised.
    """
    name, argv = f"tool_{tool}", sys.argv
    if name not in sys.modules:
        path = os.path.join(REPOSITORY, "tools", f"{tool}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    module, error = sys.modules[name], io.StringIO()
    sys.argv = [f"{tool}.py", *map(str, words)]
    try:
        with contextlib.redirect_stderr(error), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            takes_arguments = bool(inspect.signature(module.main).parameters)
            module.main(*([module.parse_args()] if takes_arguments else []))
        return 0, error.getvalue()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        return code, error.getvalue() + ("" if isinstance(end.code, int) else str(end.code))
    finally:
        sys.argv = argv
