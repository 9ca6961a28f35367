"""Detections in the import formats of other tools, as plain files."""

import json
import xml.etree.ElementTree as xml
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util

from .detections import Detections

Json = Dict[str, Any]


def _by_image(images: List[Json], detections: Detections) -> Iterator[Tuple[Json, List[Json]]]:
    """Every image with its detections, best first."""
    found: Dict[Any, List[Json]] = {}
    for row in detections.to_dicts():
        found.setdefault(row["image_id"], []).append(row)
    for image in images:
        yield image, sorted(found.get(image["id"], []), key=lambda row: -row["score"])


def file_name(image: Json) -> str:
    """The image's file, as LVIS names it by its address."""
    return image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])


def to_coco(images: List[Json], categories: List[Json], detections: Detections) -> str:
    """A data set json of COCO whose annotations are the detections, with their scores."""
    annotations: List[Json] = []
    named = [{**image, "file_name": file_name(image)} for image in images]
    for _, rows in _by_image(images, detections):
        for row in rows:
            mask, (_, _, width, height) = row.get("segmentation"), row["bbox"]
            area = float(mask_util.area(mask)) if mask else width * height
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, "area": area, **row})
    return json.dumps({"images": named, "annotations": annotations, "categories": categories})


def to_fiftyone(images: List[Json], categories: List[Json], detections: Detections) -> str:
    """``labels.json`` of FiftyOne's FiftyOneImageDetectionDataset; it has no masks."""
    names = {category["id"]: category["name"] for category in categories}
    labels = {}
    for image, rows in _by_image(images, detections):
        width, height = image["width"], image["height"]
        labels[str(PurePosixPath(file_name(image)).with_suffix(""))] = [
            {
                "label": names[row["category_id"]],
                "bounding_box": [
                    value / size for value, size in zip(row["bbox"], 2 * [width, height])
                ],
                "confidence": row["score"],
            }
            for row in rows
        ]
    return json.dumps({"classes": list(names.values()), "labels": labels})


def row_runs(mask: Json) -> Tuple[List[int], List[int]]:
    """A mask as CVAT has it: left, top, width, height of its box; runs along the box's rows.

    The first run is of zeros.
    """
    left, top, width, height = (int(v) for v in mask_util.toBbox(mask))
    pixels = mask_util.decode(mask)[top : top + height, left : left + width].reshape(-1)
    runs = [len(list(run)) for _, run in groupby(pixels.tolist())]
    return [left, top, width, height], runs if not len(pixels) or not pixels[0] else [0, *runs]


def to_cvat(images: List[Json], categories: List[Json], detections: Detections) -> str:
    """XML of "CVAT for images 1.1": masks, or boxes where there are none; scores as attributes."""
    names = {category["id"]: str(category["name"]) for category in categories}
    root = xml.Element("annotations")
    xml.SubElement(root, "version").text = "1.1"
    labels = xml.SubElement(xml.SubElement(xml.SubElement(root, "meta"), "task"), "labels")
    for name in names.values():
        label = xml.SubElement(labels, "label")
        xml.SubElement(label, "name").text = name
        attribute = xml.SubElement(xml.SubElement(label, "attributes"), "attribute")
        for key, value in {
            **{"name": "score", "mutable": "False", "input_type": "text"},
            **{"default_value": "", "values": ""},
        }.items():
            xml.SubElement(attribute, key).text = value
    for number, (image, rows) in enumerate(_by_image(images, detections)):
        described = {"id": number, "name": file_name(image)}
        described.update((key, image[key]) for key in ("width", "height"))
        element = xml.SubElement(root, "image", {k: str(v) for k, v in described.items()})
        for row in rows:
            common = {"label": names[row["category_id"]], "source": "auto", "occluded": "0"}
            if row.get("segmentation"):
                box, runs = row_runs(row["segmentation"])
                where = dict(zip(("left", "top", "width", "height"), map(str, box)))
                shape = {**where, "rle": ", ".join(map(str, runs))}
                kind = "mask"
            else:
                x, y, width, height = row["bbox"]
                corners = np.round([x, y, x + width, y + height], 2)
                shape = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, corners.tolist())))
                kind = "box"
            drawn = xml.SubElement(element, kind, {**common, **shape, "z_order": "0"})
            xml.SubElement(drawn, "attribute", name="score").text = f"{row['score']:.4f}"
    xml.indent(root)
    return xml.tostring(root, "unicode", xml_declaration=True)


FORMATS: Dict[str, Callable[[List[Json], List[Json], Detections], str]] = {
    "coco": to_coco,
    "fiftyone": to_fiftyone,
    "cvat": to_cvat,
}
