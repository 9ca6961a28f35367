"""Output of our models in the ``supervision`` library."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from test_box_predictor import ALL, TINY


@pytest.mark.parametrize("masks", [True, False])
def test_from_detectron2(load_config, masks):
    supervision = pytest.importorskip("supervision")
    cfg = load_config("lvis_cascade_tde.yaml", *TINY, *ALL, "MODEL.MASK_ON", masks)
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        (output,) = build_model(cfg).eval()([{"image": image, "height": 128, "width": 192}])
    found = supervision.Detections.from_detectron2(output)
    instances = output["instances"]
    assert len(found) == len(instances) > 0
    np.testing.assert_array_equal(found.xyxy, instances.pred_boxes.tensor)
    np.testing.assert_array_equal(found.confidence, instances.scores)
    np.testing.assert_array_equal(found.class_id, instances.pred_classes)
    assert (found.mask is None) == (not masks)
    if masks:
        np.testing.assert_array_equal(found.mask, instances.pred_masks)
