"""INPUT.LSJ: what the training mapper does with images, boxes and masks, and what stays."""

import json
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from tde_det import add_tde_config
from tde_det.data import TolerantMapper
from tde_det.engine import feature_statistics, read_config
from tde_det.errors import InputError

HEIGHT, WIDTH, SIZE = 60, 90, 48
BOX = (20, 10, 70, 50)  # x0, y0, x1, y1 of a white rectangle on black


@pytest.fixture
def record(tmp_path):
    """An image whose object can be seen: white where its mask is."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    Image.fromarray(255 * np.stack([mask] * 3, -1)).save(tmp_path / "x.png")
    annotation = {
        "bbox": list(BOX),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "segmentation": mask_util.encode(mask),
    }
    image = {"file_name": str(tmp_path / "x.png"), "height": HEIGHT, "width": WIDTH}
    return {**image, "image_id": 1, "annotations": [annotation]}


def config(low=0.3, high=2.0, **keys):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.LSJ.update({"ENABLED": True, "MIN_SCALE": low, "MAX_SCALE": high, "SIZE": SIZE})
    cfg.INPUT.LSJ.update(keys)
    return cfg


def test_masks_and_boxes_follow_the_image(record):
    np.random.seed(0)
    mapper = TolerantMapper(config(), is_train=True)
    areas = []
    for _ in range(60):
        mapped = mapper(record)
        image, instances = mapped["image"].float().mean(0), mapped["instances"]
        assert image.shape == instances.image_size == (SIZE, SIZE)
        if not len(instances):
            continue
        mask = instances.gt_masks.tensor[0]
        wrong = ((image > 190) != mask).float().mean()
        assert wrong < 0.08  # the border of a rescaled image
        ys, xs = mask.nonzero().T
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert instances.gt_boxes.tensor[0].tolist() == [float(v) for v in box]
        areas.append(int(mask.sum()))
    assert len(areas) > 40
    # The longer side is 0.3 to 2 times SIZE, and what is beyond SIZE is cropped.
    ratio = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1]) / WIDTH**2 * SIZE**2
    assert min(areas) < 0.3 * ratio and max(areas) > 1.8 * ratio


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_a_fixed_scale_is_exact(record, scale):
    """A longer side of scale · SIZE at the top left; the rest is padding of Detectron2's grey."""
    cfg = config(scale, scale)
    cfg.INPUT.RANDOM_FLIP = "none"
    mapped = TolerantMapper(cfg, is_train=True)(record)
    factor = scale * SIZE / WIDTH
    width, height = round(WIDTH * factor), round(HEIGHT * factor)
    padding = np.ones((SIZE, SIZE), bool)
    padding[:height, :width] = False
    image = mapped["image"].numpy()
    assert (image[:, padding] == 128).all() and not (image[:, ~padding] == 128).all()
    expected = np.array(BOX) * factor
    assert np.abs(mapped["instances"].gt_boxes.tensor[0].numpy() - expected).max() <= 1


def test_flips_as_the_config_says(record):
    def kinds(flip):
        cfg = config()
        cfg.INPUT.RANDOM_FLIP = flip
        return TolerantMapper(cfg, is_train=True).augmentations.augs

    resize, crop, flip = kinds("horizontal")
    assert isinstance(resize, T.ResizeScale) and isinstance(crop, T.FixedSizeCrop)
    assert isinstance(flip, T.RandomFlip) and flip.horizontal and not flip.vertical
    assert kinds("vertical")[2].vertical and len(kinds("none")) == 2


def test_inference_and_the_default_stay(record):
    default = config(ENABLED=False)
    for cfg, is_train in ((config(), False), (default, False), (default, True)):
        (resize, *rest) = TolerantMapper(cfg, is_train=is_train).augmentations.augs
        assert isinstance(resize, T.ResizeShortestEdge) and len(rest) == is_train
    images = [TolerantMapper(cfg, is_train=False)(record)["image"] for cfg in (config(), default)]
    assert (images[0] == images[1]).all() and images[0].shape == (3, 800, 1200)


def test_statistics_are_of_whole_images(record, monkeypatch):
    """calibrate.py's pass has its own resize, and the boxes that the data set says."""
    made = []
    monkeypatch.setattr(feature_statistics, "registered_dataset", lambda name: [record])
    monkeypatch.setattr(
        feature_statistics,
        "build_detection_test_loader",
        lambda _, mapper, **kw: made.append(mapper),
    )
    monkeypatch.setattr(feature_statistics, "objects_in", lambda _: _Objects())
    cfg = config()
    cfg.DATASETS.TRAIN = ("x",)
    feature_statistics.build_loader(cfg, None)
    (resize,) = made[0].augmentations.augs
    assert isinstance(resize, T.ResizeShortestEdge) and not made[0].recompute_boxes
    assert made[0](record)["image"].shape == (3, 800, 1200)


class _Objects:
    image_index = np.array([0])

    def without_crowds(self):
        return self


def test_polygons(record):
    pytest.importorskip("shapely")
    x0, y0, x1, y1 = BOX
    record["annotations"][0]["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    for mask_format in ("polygon", "bitmask"):
        cfg = config(1.0, 2.0)
        cfg.INPUT.MASK_FORMAT = mask_format
        mapper = TolerantMapper(cfg, is_train=True)
        for _ in range(20):
            instances = mapper(record)["instances"]
            masks = instances.gt_masks
            assert masks.nonempty().all()
            boxes = masks.get_bounding_boxes().tensor
            assert (boxes == instances.gt_boxes.tensor).all() and boxes.max() <= SIZE


def test_polygons_without_shapely(record, monkeypatch):
    record["annotations"][0]["segmentation"] = [[20, 10, 70, 10, 70, 50]]
    for module in [m for m in sys.modules if m.split(".")[0] == "shapely"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(InputError, match="pip install shapely"):
        TolerantMapper(config(), is_train=True)(record)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"MIN_SCALE": 0.0}, "0 < MIN_SCALE <= MAX_SCALE must hold, got MIN_SCALE 0.0"),
        ({"MIN_SCALE": -0.5}, "got MIN_SCALE -0.5"),
        ({"MIN_SCALE": 3.0}, "got MIN_SCALE 3.0 and MAX_SCALE 2.0"),
        ({"MAX_SCALE": float("inf")}, "MAX_SCALE inf"),
        ({"MAX_SCALE": float("nan")}, "MAX_SCALE nan"),
        ({"SIZE": 0}, "SIZE is 0 pixels"),
        ({"SIZE": -64}, "SIZE is -64 pixels"),
        ({"SIZE": 64, "MIN_SCALE": 0.01}, "must be at least 8"),
        ({"SIZE": 64.5}, "INPUT.LSJ.SIZE"),
        ({"MAX_SCALE": None}, "INPUT.LSJ.MAX_SCALE has no value"),
    ],
)
def test_bad_values(tmp_path, values, message):
    lsj = {"ENABLED": True, **values}
    (tmp_path / "x.yaml").write_text(f"INPUT: {{LSJ: {_yaml(lsj)}}}")
    with pytest.raises(InputError, match=message) as error:
        read_config(str(tmp_path / "x.yaml"))
    assert "\n" not in str(error.value) and "LSJ" in str(error.value)
    if None not in values.values() and message != "INPUT.LSJ.SIZE":
        with pytest.raises(InputError, match=message):
            TolerantMapper(config(0.1, 2.0, **values), is_train=True)


def _yaml(values):
    return json.dumps(values).replace("Infinity", ".inf").replace("NaN", ".nan")


def test_either_crop():
    cfg = config()
    cfg.INPUT.CROP.ENABLED = True
    with pytest.raises(InputError, match="LSJ and INPUT.CROP both crop"):
        TolerantMapper(cfg, is_train=True)
