"""Detections and masks against Detectron2's own functions, which must be equaled exactly."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances

from tde_det.inference import top_detections as module
from tde_det.inference.box_inference import CascadeHeads, add_up, box_inference
from tde_det.inference.masks import encode_masks
from tde_det.inference.top_detections import top_detections

SHAPE = (120, 160)


def random_case(seed):
    """Boxes and scores with every oddity, in numbers on both sides of each decision."""
    rng = np.random.default_rng(seed)
    # Below and above the 1000 pairs at which torchvision changes its way.
    num_boxes, num_classes = int(rng.integers(0, 90)), int(rng.choice([1, 3, 30]))
    specific = num_classes if rng.random() < 0.3 else 1
    corner = rng.uniform(-20, 140, (num_boxes, specific, 2))
    size = rng.uniform(0, 60, (num_boxes, specific, 2))
    if rng.random() < 0.3:  # a few boxes many times over, with IoUs that are simple fractions
        corner, size = np.round(corner, -1), np.round(size, -1)
    boxes = np.concatenate([corner, corner + size], axis=2)
    if num_boxes and rng.random() < 0.3:
        boxes[rng.integers(0, num_boxes, 5)] = boxes[rng.integers(0, num_boxes)]
        boxes[rng.integers(0, num_boxes), :, 2:] -= 70  # x2 < x1
    logits = rng.normal(size=(num_boxes, num_classes + 1)) * rng.choice([0.1, 1, 4])
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if rng.random() < 0.4:
        scores = np.round(scores, int(rng.integers(1, 4)))  # ties
    boxes = boxes.reshape(num_boxes, 4 * specific).astype(np.float32)
    scores = scores.astype(np.float32)
    if num_boxes and rng.random() < 0.2:
        boxes[rng.integers(0, num_boxes), 1] = rng.choice([np.nan, np.inf])
        scores[rng.integers(0, num_boxes), 0] = rng.choice([np.nan, np.inf, -np.inf])
    threshold = float(rng.choice([0.0, 1e-4, 0.05, -1.0, 2.0]))
    topk = int(rng.choice([-1, 0, 1, 5, 20, 100, 10000]))
    nms = float(rng.choice([0.0, 0.3, 0.5, 1.0]))
    return torch.from_numpy(boxes), torch.from_numpy(scores), threshold, nms, topk


def assert_equal_detections(expected, rows, actual):
    assert torch.equal(expected.pred_boxes.tensor, actual[0])
    assert torch.equal(expected.scores, actual[1])
    assert torch.equal(expected.pred_classes, actual[2])
    assert torch.equal(rows, actual[3])
    for a, b in zip((expected.scores, expected.pred_classes, rows), actual[1:]):
        assert a.dtype == b.dtype


class TestDetections:
    def test_equal_to_detectron2(self):
        complete = 0
        for seed in range(10_000):
            boxes, scores, threshold, nms, topk = random_case(seed)
            expected, rows = fast_rcnn_inference([boxes], [scores], [SHAPE], threshold, nms, topk)
            actual = top_detections(boxes, scores, SHAPE, threshold, nms, topk)
            assert_equal_detections(expected[0], rows[0], actual)
            complete += (scores[:, :-1] > threshold).sum() > 1000 and 0 < topk < 200
        assert complete > 400  # the cases in which a prefix was enough, or was found not to be

    @pytest.mark.parametrize("pairs", [999, 1000, 1001])
    def test_where_torchvision_changes_its_way(self, pairs):
        """IoUs of exactly 1/2: shifted far out, boxes' IoUs round to either side of it."""
        rng = np.random.default_rng(pairs)
        corner = np.round(rng.uniform(0, 90, (pairs, 2))).astype(np.float32) + 0.1
        boxes = torch.from_numpy(np.concatenate([corner, corner + [30, 20]], 1)).float()
        scores = torch.from_numpy(rng.random((pairs, 2))).float()
        expected, rows = fast_rcnn_inference([boxes], [scores], [SHAPE], 0.0, 0.5, 50)
        actual = top_detections(boxes, scores, SHAPE, 0.0, 0.5, 50)
        assert_equal_detections(expected[0], rows[0], actual)

    def test_stops_early(self, monkeypatch):
        """NMS sees a fraction of the pairs, also when the first prefix does not suffice."""
        seen = []
        nms = module._nms_per_class
        monkeypatch.setattr(
            module,
            "_nms_per_class",
            lambda boxes, *rest, **kw: seen.append(len(boxes)) or nms(boxes, *rest, **kw),
        )
        generator = torch.Generator().manual_seed(1)
        corner = torch.rand(400, 2, generator=generator) * 25
        boxes = torch.cat([corner, corner + 50], dim=1)
        scores = torch.rand(400, 301, generator=generator, dtype=torch.float64)
        scores = (scores**8).float()  # finer steps than float32 has near 1
        expected, rows = fast_rcnn_inference([boxes], [scores], [SHAPE], 0.0, 0.1, 300)
        actual = top_detections(boxes, scores, SHAPE, 0.0, 0.1, 300)
        assert_equal_detections(expected[0], rows[0], actual)
        assert len(seen) > 1 and sum(seen) < 0.5 * scores.numel(), seen

    def test_ties_among_very_many_pairs_come_by_row_then_class(self):
        generator = torch.Generator().manual_seed(1)
        corner = torch.rand(400, 2, generator=generator) * 100
        boxes = torch.cat([corner, corner + 15], dim=1)
        scores = torch.rand(400, 301, generator=generator).mul(1000).round().div(1000)
        expected, rows = fast_rcnn_inference([boxes], [scores], [SHAPE], 0.0, 0.5, -1)
        actual = top_detections(boxes, scores, SHAPE, 0.0, 0.5, 300)
        index = rows[0] * 300 + expected[0].pred_classes
        order = sorted(range(len(index)), key=lambda i: (-expected[0].scores[i], index[i]))[:300]
        assert_equal_detections(expected[0][order], rows[0][order], actual)
        assert len(actual[1].unique()) < 100

    def test_two_images_and_instances(self):
        cases = [random_case(seed) for seed in (3, 4)]
        boxes, scores = [c[0] for c in cases], [c[1] for c in cases]
        shapes = [SHAPE, (60, 50)]
        expected, rows = fast_rcnn_inference(boxes, scores, shapes, 0.01, 0.5, 30)
        actual, actual_rows = box_inference(boxes, scores, shapes, 0.01, 0.5, 30)
        for e, a, r, ar in zip(expected, actual, rows, actual_rows):
            assert e.image_size == a.image_size and list(e.get_fields()) == list(a.get_fields())
            assert isinstance(a.pred_boxes, Boxes)
            assert_equal_detections(e, r, (a.pred_boxes.tensor, a.scores, a.pred_classes, ar))

    def test_the_cascade_calls_it(self):
        code = CascadeHeads._forward_box.__code__
        nested = [const for const in code.co_consts if hasattr(const, "co_names")]
        names = {name for c in (code, *nested) for name in c.co_names}
        for name, function in (("fast_rcnn_inference", box_inference), ("sum", add_up)):
            assert name in names
            assert CascadeHeads._forward_box.__globals__[name] is function

    @pytest.mark.parametrize("stages", [1, 2, 3, 4])
    def test_sum_of_stages(self, stages):
        scores = list(torch.rand(stages, 50, 30))
        before = [s.clone() for s in scores]
        assert torch.equal(add_up(scores), sum(scores))
        assert all(map(torch.equal, before, scores))


def stock_encoding(masks, boxes, shape, threshold=0.5):
    """What Detectron2 does, in ``detector_postprocess`` and its evaluators."""
    encoded = []
    for mask in paste_masks_in_image(masks, boxes, shape, threshold).numpy():
        rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        encoded.append({"size": rle["size"], "counts": rle["counts"].decode()})
    return encoded


def random_masks(seed, count=12, size=28):
    rng = np.random.default_rng(seed)
    shape = tuple(int(v) for v in rng.integers(1, 90, 2))
    limit = np.array([shape[1], shape[0]] * 2, np.float32)
    corner = rng.uniform(-30, 90, (count, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(rng.choice([3, 60]), (count, 2))], 1)
    boxes = np.clip(boxes, 0, limit).astype(np.float32)  # as the detector's are
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    if seed % 3 == 0:
        boxes = np.round(boxes)
        boxes[:, 2:] += 1
    coarse = torch.from_numpy(rng.normal(size=(len(boxes), 1, 5, 5))).float() * 5
    masks = F.interpolate(coarse, (size, size), mode="bilinear")[:, 0].sigmoid()
    return masks, torch.from_numpy(boxes), shape


class TestMasks:
    def test_every_byte_equal(self):
        total = 0
        for seed in range(200):
            masks, boxes, shape = random_masks(seed, size=(28, 14, 7, 56)[seed % 4])
            if seed % 7 == 0:
                masks = masks.round()  # of 0 and 1: many samples lie at the threshold
            assert encode_masks(masks, boxes, shape) == stock_encoding(masks, boxes, shape)
            total += len(masks)
        assert total > 500

    @pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
    def test_thresholds(self, threshold):
        masks, boxes, shape = random_masks(4)
        expected = stock_encoding(masks, boxes, shape, threshold)
        assert encode_masks(masks, boxes, shape, threshold) == expected

    @pytest.mark.parametrize("value", [0.0, 0.5, 1.0, float("nan"), float("inf")])
    def test_constant_masks_over_the_whole_image(self, value):
        """Runs that cross columns, none at all, one of everything, and nothing but rechecks."""
        shape = (37, 23)
        boxes = torch.tensor([[0.0, 0, 23, 37], [5, 0, 9, 37], [0, 3, 23, 20], [22, 36, 23, 37]])
        masks = torch.full((4, 28, 28), value)
        masks[1, 3] = 0.2
        assert encode_masks(masks, boxes, shape) == stock_encoding(masks, boxes, shape)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_types(self, dtype):
        masks, boxes, shape = random_masks(5)
        typed = masks.to(dtype)
        try:
            expected = stock_encoding(typed, boxes, shape)
        except RuntimeError as error:  # old PyTorch
            pytest.skip(str(error))
        assert encode_masks(typed, boxes, shape) == expected

    def test_large_image_in_chunks(self, monkeypatch):
        masks, boxes, shape = random_masks(7, count=30)
        expected = encode_masks(masks, boxes, shape)
        monkeypatch.setattr("tde_det.inference.masks._PIXELS", 50)
        assert encode_masks(masks, boxes, shape) == expected == stock_encoding(masks, boxes, shape)

    def test_many_runs(self):
        """Runs longer than 15, 511 and 16383 pixels take 2, 3 and 4 characters."""
        shape = (900, 700)
        boxes = torch.tensor([[0.0, 0, 700, 900], [350, 0, 360, 900], [699, 899, 700, 900]])
        masks = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
        masks[1] = 1
        encoded = encode_masks(masks, boxes, shape)
        assert encoded == stock_encoding(masks, boxes, shape)
        assert mask_util.decode(encoded)[:, :, 1].sum() > 8000

    def test_no_masks(self):
        assert encode_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)) == []
        assert not len(Instances((5, 6), pred_masks_rle=[]))
