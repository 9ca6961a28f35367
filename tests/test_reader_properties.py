"""Whatever a json holds, the readers read it or raise ``InputError``: found by hypothesis."""

import json
import os
import tempfile

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tool_runs import SQUARE, small_set, square_rle

from tde_det.data.lvis_json import read_lvis_json
from tde_det.data.lvis_table import LvisTable
from tde_det.errors import InputError
from tde_det.evaluation.results_file import parse_detections, read_detections

MANY = settings(
    max_examples=700, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 1e308, 1e9])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(["size", "counts", "id", "a"]), inner, max_size=3)
    ),
    max_leaves=12,
)
COUNTS = st.text(max_size=12) | st.lists(st.integers(-5, 3000), max_size=6)
SIZES = st.lists(st.integers(-3, 60), max_size=3)
MASKS = (
    VALUES
    | st.sampled_from([[SQUARE], square_rle(), square_rle(compressed=False)])
    | st.fixed_dictionaries({"size": st.just([40, 60]) | SIZES, "counts": COUNTS})
    | st.lists(st.lists(st.floats(-2e6, 2e6) | NUMBERS, max_size=9), max_size=3)
)
KEYS = {
    "categories": ["id", "name", "frequency", "image_count", "instance_count"],
    "images": [
        *("id", "file_name", "height", "width", "coco_url"),
        *("neg_category_ids", "not_exhaustive_category_ids"),
    ],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"],
}


@st.composite
def changed_sets(draw):
    """A good json after up to four changes anywhere in it."""
    data = small_set()
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(list(KEYS)))
        entries = data.get(kind)
        where = draw(st.integers(0, 3))
        if not isinstance(entries, list) or where >= len(entries):
            data[kind] = draw(VALUES)
        elif isinstance(entries[where], dict):
            key = draw(st.sampled_from(KEYS[kind]))
            if draw(st.booleans()) or key == "segmentation":
                entries[where][key] = draw(MASKS if key == "segmentation" else VALUES)
            else:
                entries[where].pop(key, None)
    return data


def write(content):
    with tempfile.NamedTemporaryFile("wb", suffix=".json", delete=False) as file:
        file.write(content)
    return file.name


@MANY
@given(changed_sets())
def test_annotations(data):
    path = write(json.dumps(data).encode())
    try:
        read = read_lvis_json(path)
        assert all({"id", "bbox", "area"} <= set(entry) for entry in read["annotations"])
    except InputError as error:
        assert path in str(error)
    try:
        list(LvisTable(path, "root"))
    except InputError as error:
        assert path in str(error)
    finally:
        os.remove(path)


@MANY
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_content(content):
    path = write(content)
    try:
        for read in (read_lvis_json, lambda path: read_detections(path, {1: (40, 60)})):
            try:
                read(path)
            except InputError as error:
                assert path in str(error)
    finally:
        os.remove(path)


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "image_id": VALUES | st.just(1),
        "category_id": VALUES | st.just(70),
        "score": VALUES | st.floats(0, 1),
        "bbox": VALUES | st.lists(NUMBERS, min_size=4, max_size=4),
        "segmentation": MASKS,
    },
)
GOOD = {"image_id": 1, "category_id": 70, "score": 0.5, "bbox": [1, 2, 3, 4]}


@MANY
@given(st.lists(ROWS | ROWS.map(lambda row: {**GOOD, **row}) | VALUES, max_size=4))
def test_results(rows):
    path = write(json.dumps(rows).encode())
    for read in (
        lambda: parse_detections(rows, {1: (40, 60)}),
        lambda: read_detections(path, {1: (40, 60)}),
    ):
        try:
            assert len(read()) == len(rows)
        except InputError as error:
            assert "is wrong" in str(error) or path in str(error)
    os.remove(path)
