"""Choose the detections to draw, of up to 300 in an image."""

from collections import Counter
from typing import Any, Dict, List

import torch
from torchvision.ops import nms


def select_readable(
    detections: List[Dict[str, Any]],
    score_threshold: float = 0.3,
    max_per_class: int = 5,
    duplicate_iou: float = 0.7,
) -> List[Dict[str, Any]]:
    """Drop detections of low score, near-duplicates of any class, and all but the best of a class.

    With 1,203 classes the same object is often detected as several of them. LVIS's metric rewards
    that, but a picture of it is hard to read.

    Args:
        detections: of one image, in the LVIS results format (``bbox`` as x, y, width, height).
        score_threshold: lowest score kept.
        max_per_class: most detections kept per category.
        duplicate_iou: a box that overlaps a better one by more than this IoU is dropped.

    Returns:
        the rest, best first.

    >>> box = {"bbox": [0, 0, 10, 10], "category_id": 1, "score": 0.9}
    >>> select_readable([box, {**box, "category_id": 2, "score": 0.8}])
    [{'bbox': [0, 0, 10, 10], 'category_id': 1, 'score': 0.9}]
    """
    detections = [d for d in detections if d["score"] >= score_threshold]
    boxes = torch.tensor([d["bbox"] for d in detections], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.tensor([d["score"] for d in detections], dtype=torch.float64)
    seen: Counter = Counter()
    selected = []
    for i in nms(boxes, scores, duplicate_iou).tolist():
        seen[detections[i]["category_id"]] += 1
        if seen[detections[i]["category_id"]] <= max_per_class:
            selected.append(detections[i])
    return selected
