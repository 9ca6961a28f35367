"""Why detections are wrong and objects are missed, in the terms of TIDE, with LVIS's rules.

With t_f = 0.5 and t_b = 0.1, and IoU of boxes, a detection that matches no object is

    localisation    if t_b ≤ IoU ≤ t_f with an object of its class,
    classification  else if IoU ≥ t_f with an object of another class,
    duplicate       else if IoU ≥ t_f with an object of its class that a better detection matches,
    background      else if IoU ≤ t_b with all objects,
    both            else: badly placed, and of another class.

A missed object is matched by no detection, and no localisation or classification error is about
it. ΔAP of a kind of error is the AP50 gained if an oracle mends it alone: it turns the best
localisation or classification error about an unmatched object into a correct detection, takes all
other errors of the kind away, and takes missed objects away.

LVIS's rules: only the best 300 detections of an image count, and of these only those of classes
that the image is annotated with or known to lack. An unmatched detection of a class that the image
is not exhaustively annotated with is ignored, and so is one that matches an object to be ignored.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020
(https://arxiv.org/abs/2008.08115), and the authors' tidecv, which does not know LVIS's rules.
"""

import dataclasses
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util

from .detections import Detections
from .hotcoco_backend import best_in_each_group
from .lvis_eval import MAX_DETECTIONS
from .precision_recall import precision_at_recalls

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(5)
CORRECT, IGNORED = 5, 6  # further verdicts; ignored ones do not count in AP


@dataclasses.dataclass
class Verdicts:
    """What becomes of M detections, the best of each image, and of G objects.

    Attributes:
        rows: ``int[M]``, of the detections.
        images: ``int[M]``, numbers in the order of the annotations' images.
        classes, scores: ``[M]``; classes are numbers in the order of the annotations' categories,
            -1 for none of them.
        verdicts: ``int8[M]``: a kind of error, :data:`CORRECT` or :data:`IGNORED`.
        targets: ``int[M]``, the object that a detection matches, or that its localisation or
            classification error is about; else -1.
        objects: ``int[G]``, positions in the annotations of those that LVIS evaluates.
        object_images, object_classes: ``int[G]``
        counts: ``bool[G]``, False for objects that are to be ignored.
        found: ``bool[G]``, matched by a detection.
        missed: ``bool[G]``
        called: ``int[G]``, the class of the best detection of any class, counted or not, with an
            IoU of at least 0.5; -1 without one.
    """

    rows: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    verdicts: np.ndarray
    targets: np.ndarray
    objects: np.ndarray
    object_images: np.ndarray
    object_classes: np.ndarray
    counts: np.ndarray
    found: np.ndarray
    missed: np.ndarray
    called: np.ndarray


def _match(ious: np.ndarray, same: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The object that each detection of an image matches, ``int[D]``, -1 for none: lvis-api's rule.

    Args:
        ious: ``[D, G]``, of detections by falling score.
        same: ``bool[D, G]``, whether the classes are the same.
        ignored: ``bool[G]``, taken only where no other object is left.
    """
    matched = np.full(len(ious), -1)
    candidates = same & (ious >= FOREGROUND_IOU)
    free = np.ones(len(ignored), bool)
    for row in np.flatnonzero(candidates.any(axis=1)):
        columns = np.flatnonzero(candidates[row] & free)
        if len(columns):
            best = columns[np.lexsort((ious[row, columns], ~ignored[columns]))[-1]]
            matched[row] = best
            free[best] = False
    return matched


def _errors(ious: np.ndarray, same: np.ndarray, found: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The error and its object of detections that match none, ``int[D]`` each.

    Args:
        ious, same: ``[D, G]``, of the objects that count.
        found: ``bool[G]``, which of them are matched.
    """
    if not ious.shape[1]:
        return np.full(len(ious), BACKGROUND), np.full(len(ious), -1)
    own, other = np.where(same, ious, 0), np.where(same, 0, ious)
    own_max, other_max = own.max(axis=1), other.max(axis=1)
    conditions = [
        (own_max >= BACKGROUND_IOU) & (own_max <= FOREGROUND_IOU),
        other_max >= FOREGROUND_IOU,
        np.where(found, own, 0).max(axis=1) >= FOREGROUND_IOU,
        np.maximum(own_max, other_max) <= BACKGROUND_IOU,
    ]
    kinds = [LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND]
    about = [own.argmax(axis=1), other.argmax(axis=1)]
    return np.select(conditions, kinds, BOTH), np.select(conditions[:2], about, -1)


def find_errors(ground_truth: Dict[str, Any], detections: Detections) -> Verdicts:
    """Judge detections by their boxes.

    Args:
        ground_truth: from :func:`tde_det.data.lvis_json.read_lvis_json`; its ``categories`` give
            classes their numbers.
        detections: with boxes, in images of ``ground_truth``.
    """
    assert detections.boxes is not None
    image_numbers = {image["id"]: i for i, image in enumerate(ground_truth["images"])}
    class_numbers = {category["id"]: i for i, category in enumerate(ground_truth["categories"])}
    annotations = ground_truth["annotations"]
    objects = [i for i, a in enumerate(annotations) if 0 < a["area"] < np.inf]
    # By image, both; detections by falling score.
    objects.sort(key=lambda i: image_numbers[annotations[i]["image_id"]])
    object_images = np.array([image_numbers[annotations[i]["image_id"]] for i in objects], int)
    object_classes = np.array([class_numbers[annotations[i]["category_id"]] for i in objects], int)
    object_boxes = np.array([annotations[i]["bbox"] for i in objects], float).reshape(-1, 4)
    counts = np.array([not annotations[i].get("ignore") for i in objects], bool)
    rows = best_in_each_group(detections.image_ids, detections.scores, MAX_DETECTIONS)
    rows = rows[(detections.boxes[rows, 2:] > 0).all(axis=1)]
    images = np.array([image_numbers[i] for i in detections.image_ids[rows].tolist()], int)
    order = np.lexsort((-detections.scores[rows], images))
    rows, images = rows[order], images[order]
    ids = detections.category_ids[rows].tolist()
    classes = np.array([class_numbers.get(i, -1) for i in ids], int)
    boxes = detections.boxes[rows].astype(float)

    verdicts = np.full(len(rows), IGNORED, np.int8)
    targets, called = np.full(len(rows), -1), np.full(len(objects), -1)
    found, about = np.zeros(len(objects), bool), np.zeros(len(objects), bool)
    numbers = np.arange(len(image_numbers) + 1)
    ends, object_ends = np.searchsorted(images, numbers), np.searchsorted(object_images, numbers)
    for number, image in enumerate(ground_truth["images"]):
        here, there = (slice(e[number], e[number + 1]) for e in (ends, object_ends))
        first, num_objects = object_ends[number], there.stop - there.start
        if here.start == here.stop:
            continue
        ious = np.zeros((here.stop - here.start, 0))
        if num_objects:
            ious = mask_util.iou(boxes[here], object_boxes[there], [0] * num_objects)
            over = ious >= FOREGROUND_IOU
            called[there] = np.where(over.any(axis=0), classes[here][over.argmax(axis=0)], -1)
        same = classes[here, None] == object_classes[there]
        lacking = {class_numbers.get(c) for c in image["neg_category_ids"]}
        known = np.isin(classes[here], [*{*object_classes[there].tolist(), *lacking} - {None}])
        partly = [class_numbers.get(c, -2) for c in image["not_exhaustive_category_ids"]]
        matched = _match(ious, same & known[:, None], ~counts[there])
        is_correct = (matched >= 0) & np.append(counts[there], False)[matched]
        found[first + matched[matched >= 0]] = True
        judged = known & (matched < 0) & ~np.isin(classes[here], partly)
        rest = np.flatnonzero(counts[there])
        kinds, errors_about = _errors(ious[:, rest], same[:, rest], found[there][rest])
        errors_about = np.where(errors_about >= 0, np.append(rest, -1)[errors_about], -1)
        verdicts[here] = np.select([is_correct, judged], [CORRECT, kinds], IGNORED)
        chosen = np.select([is_correct, judged], [matched, errors_about], -1)
        targets[here] = np.where(chosen >= 0, first + chosen, -1)
        about[first + chosen[judged & (chosen >= 0)]] = True
    return Verdicts(
        *(rows, images, classes, detections.scores[rows], verdicts, targets),
        *(np.array(objects, int), object_images, object_classes, counts),
        *(found, counts & ~found & ~about, called),
    )


def _ap50(
    classes: np.ndarray, scores: np.ndarray, correct: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """AP in percent of each class, ``[C]``; 0 for one without objects."""
    aps = np.zeros(len(num_objects))
    order = np.lexsort((-scores, classes))
    ends = np.searchsorted(classes[order], np.arange(len(num_objects) + 1))
    for c in np.flatnonzero(num_objects):
        hits = correct[None, order[ends[c] : ends[c + 1]]]
        aps[c] = 100 * precision_at_recalls(hits, np.ones_like(hits), num_objects[c])[0].mean()
    return aps


def mended_ap(verdicts: Verdicts, num_classes: int) -> Dict[str, np.ndarray]:
    """AP50 in percent of each class, ``[C]``, NaN without objects, as it is and with errors mended.

    Returns:
        by ``""``, nothing mended, and each of :data:`ERRORS`, mended alone.
    """
    v = verdicts
    num_objects = np.bincount(v.object_classes[v.counts], minlength=num_classes)
    used = np.flatnonzero(v.verdicts != IGNORED)
    classes, scores, kinds = v.classes[used], v.scores[used], v.verdicts[used]
    targets, is_correct = v.targets[used], kinds == CORRECT
    # Of all errors about an object that nothing matches, the best can be turned into its detection.
    wrong = np.flatnonzero(np.isin(kinds, (CLASSIFICATION, LOCALISATION)))
    wrong = wrong[~v.found[targets[wrong]]]
    wrong = wrong[np.argsort(-scores[wrong], kind="stable")]
    best = wrong[np.unique(targets[wrong], return_index=True)[1]]
    mendable = np.zeros(len(used), bool)
    mendable[best] = True
    aps = {"": _ap50(classes, scores, is_correct, num_objects)}
    for kind, name in enumerate(ERRORS[:-1]):
        mended = mendable & (kinds == kind)
        kept = mended | (kinds != kind)
        new = np.where(mended, np.append(v.object_classes, -1)[targets], classes)
        aps[name] = _ap50(new[kept], scores[kept], (is_correct | mended)[kept], num_objects)
    left = num_objects - np.bincount(v.object_classes[v.missed], minlength=num_classes)
    aps["missed"] = _ap50(classes, scores, is_correct, left)
    return {name: np.where(num_objects > 0, ap, np.nan) for name, ap in aps.items()}


def count_errors(verdicts: Verdicts, members: Sequence[int]) -> List[int]:
    """How many of each of :data:`ERRORS` have a detection, or object, of some classes."""
    kinds = verdicts.verdicts[np.isin(verdicts.classes, members)]
    missed = verdicts.missed & np.isin(verdicts.object_classes, members)
    return [*(int((kinds == kind).sum()) for kind in range(5)), int(missed.sum())]
