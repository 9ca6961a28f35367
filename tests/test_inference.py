"""Detections and masks against Detectron2's own functions."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import paste_masks_in_image
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances

from tde_det.data.rle import encode_masks, valid_rle
from tde_det.inference import box_inference as module
from tde_det.inference.box_inference import box_inference, top_detections

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


def rows_in_order(boxes, scores, classes, rows):
    """Detections as tuples by falling score, then class and row: one order for equal scores."""
    columns = (-scores, classes, rows, *boxes.unbind(1))
    return sorted(zip(*(column.tolist() for column in columns)))


def assert_equal_to_stock(boxes, scores, shape, threshold, nms, topk):
    """All is equal, except that any of those whose score equals the lowest one may be chosen."""
    stock, rows = fast_rcnn_inference([boxes], [scores], [shape], threshold, nms, topk)
    every, all_rows = fast_rcnn_inference([boxes], [scores], [shape], threshold, nms, -1)
    actual = top_detections(boxes, scores, shape, threshold, nms, topk)
    assert_equal_detections(stock[0], rows[0], every[0], all_rows[0], actual)


def assert_equal_detections(stock, rows, every, all_rows, actual):
    """Compare with what Detectron2 returns for the same ``topk`` and for ``topk = -1``."""
    for a, b in zip((stock.pred_boxes.tensor, stock.scores, stock.pred_classes, rows), actual):
        assert a.dtype == b.dtype and a.shape == b.shape
    assert torch.equal(stock.scores, actual[1])  # which are sorted
    expected = rows_in_order(every.pred_boxes.tensor, every.scores, every.pred_classes, all_rows)
    found = rows_in_order(*actual)
    assert len(set(found)) == len(found)
    lowest = found[-1][0] if found else None
    higher = [row for row in found if row[0] != lowest]
    assert higher == expected[: len(higher)]
    assert {*found} <= {*expected}


class TestDetections:
    def test_equal_to_detectron2(self):
        from_prefix = 0
        for seed in range(800):
            boxes, scores, threshold, nms, topk = random_case(seed)
            assert_equal_to_stock(boxes, scores, SHAPE, threshold, nms, topk)
            from_prefix += (scores[:, :-1] > threshold).sum() > 1200 and 0 <= topk < 300
        assert from_prefix > 30

    @pytest.mark.parametrize("pairs", [999, 1000, 1001, 1300, 4000])
    def test_iou_at_the_threshold(self, pairs):
        """IoUs of exactly 1/2 round to either side of it, by how torchvision separates classes."""
        rng = np.random.default_rng(pairs)
        corner = np.round(rng.uniform(0, 90, (pairs, 2))).astype(np.float32) + 0.1
        boxes = torch.from_numpy(np.concatenate([corner, corner + [30, 20]], 1)).float()
        scores = torch.from_numpy(rng.random((pairs, 2))).float()
        assert_equal_to_stock(boxes, scores, SHAPE, 0.0, 0.5, 50)

    def test_stops_early(self, monkeypatch):
        """NMS sees a fraction of the pairs, also when the first prefix does not suffice."""
        generator = torch.Generator().manual_seed(1)
        corner = torch.rand(150, 2, generator=generator) * 25
        boxes = torch.cat([corner, corner + 50], dim=1)
        scores = torch.rand(150, 301, generator=generator, dtype=torch.float64)
        scores = (scores**8).float()  # finer steps than float32 has near 1
        seen = []
        nms = module.batched_nms
        monkeypatch.setattr(module, "batched_nms", lambda b, *a: seen.append(len(b)) or nms(b, *a))
        assert_equal_to_stock(boxes, scores, SHAPE, 0.0, 0.1, 300)
        assert len(seen) > 1 and sum(seen) < 0.5 * scores.numel(), seen

    @pytest.mark.parametrize("steps", [1, 2, 1000])
    def test_ties_among_very_many_pairs(self, steps):
        generator = torch.Generator().manual_seed(1)
        corner = torch.rand(400, 2, generator=generator) * 100
        boxes = torch.cat([corner, corner + 15], dim=1)
        scores = torch.rand(400, 31, generator=generator).mul(steps).ceil().div(steps)
        assert_equal_to_stock(boxes, scores, SHAPE, 0.0, 0.5, 300)

    def test_two_images_and_instances(self):
        cases = [random_case(seed) for seed in (3, 4)]
        boxes = [case[0] for case in cases]
        generator = torch.Generator().manual_seed(0)
        noise = [torch.rand(case[1].shape, generator=generator) for case in cases]
        scores = [case[1] + 1e-3 * extra for case, extra in zip(cases, noise)]  # without ties
        shapes = [SHAPE, (60, 50)]
        expected, rows = fast_rcnn_inference(boxes, scores, shapes, 0.01, 0.5, 30)
        actual, actual_rows = box_inference(boxes, scores, shapes, 0.01, 0.5, 30)
        for e, a, r, ar in zip(expected, actual, rows, actual_rows):
            assert e.image_size == a.image_size and list(e.get_fields()) == list(a.get_fields())
            assert isinstance(a.pred_boxes, Boxes)
            assert torch.equal(e.pred_boxes.tensor, a.pred_boxes.tensor) and torch.equal(r, ar)
            assert torch.equal(e.scores, a.scores) and torch.equal(e.pred_classes, a.pred_classes)


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


def assert_equal_masks(actual, masks, boxes, shape, threshold=0.5):
    """Equal to Detectron2's, but for pixels within rounding of the threshold.

    Returns:
        pixels that differ.
    """
    expected = stock_encoding(masks, boxes, shape, threshold)
    assert len(actual) == len(expected)
    differing = 0
    for i, (one, other) in enumerate(zip(actual, expected)):
        assert one["size"] == other["size"] and isinstance(one["counts"], str)
        assert valid_rle(one["counts"].encode(), shape[0] * shape[1])
        if one["counts"] != other["counts"]:
            differs = mask_util.decode(one) != mask_util.decode(other)
            above = paste_masks_in_image(
                masks[i : i + 1], boxes[i : i + 1], shape, threshold - 1e-5
            )
            below = paste_masks_in_image(
                masks[i : i + 1], boxes[i : i + 1], shape, threshold + 1e-5
            )
            assert (above != below)[0].numpy()[differs].all()
            differing += differs.sum()
    return differing


class TestMasks:
    def test_equal_to_detectron2(self):
        total = pixels = differing = 0
        for seed in range(200):
            masks, boxes, shape = random_masks(seed, size=(28, 14, 7, 56)[seed % 4])
            if seed % 7 == 0:
                masks = masks.round()  # of 0 and 1: many samples lie at the threshold
            encoded = encode_masks(masks, boxes, shape)
            different = assert_equal_masks(encoded, masks, boxes, shape)
            if seed % 7:
                differing += different
                pixels += sum(map(int, mask_util.area(encoded))) if encoded else 0
            total += len(masks)
        assert total > 500 and differing <= 1e-4 * pixels

    @pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.9, 1.0])
    def test_thresholds(self, threshold):
        masks, boxes, shape = random_masks(4)
        encoded = encode_masks(masks, boxes, shape, threshold)
        assert assert_equal_masks(encoded, masks, boxes, shape, threshold) == 0

    @pytest.mark.parametrize("value", [0.0, 0.49, 0.51, 1.0])
    def test_constant_masks_over_the_whole_image(self, value):
        """Runs that cross columns, none at all, and one of everything."""
        shape = (37, 23)
        boxes = torch.tensor([[0.0, 0, 23, 37], [5, 0, 9, 37], [0, 3, 23, 20], [22, 36, 23, 37]])
        masks = torch.full((4, 28, 28), value)
        masks[1, 3] = 0.2
        encoded = encode_masks(masks, boxes, shape)
        assert encoded == stock_encoding(masks, boxes, shape)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_types_are_sampled_in_float32(self, dtype):
        masks, boxes, shape = random_masks(5)
        typed = masks.to(dtype)
        encoded = encode_masks(typed, boxes, shape)
        assert assert_equal_masks(encoded, typed.float(), boxes, shape) == 0

    def test_large_image(self):
        """Runs longer than 15, 511 and 16383 pixels take 2, 3 and 4 characters."""
        shape = (900, 700)
        boxes = torch.tensor([[0.0, 0, 700, 900], [350, 0, 360, 900], [699, 899, 700, 900]])
        masks = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
        masks[1] = 1
        encoded = encode_masks(masks, boxes, shape)
        assert assert_equal_masks(encoded, masks, boxes, shape) <= 20
        assert mask_util.decode(encoded)[:, :, 1].sum() > 8000

    def test_no_masks(self):
        assert encode_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)) == []
        assert not len(Instances((5, 6), pred_masks_rle=[]))
