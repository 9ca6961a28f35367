"""Random LVIS-format sets with every oddity that evaluation may meet."""

import numpy as np
import pycocotools.mask as mask_util

HEIGHT, WIDTH = 150, 200


def encode(mask):
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def rectangle(x, y, w, h, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, np.uint8)
    x, y = int(x), int(y)
    mask[max(0, y) : max(0, y + int(h)), max(0, x) : max(0, x + int(w))] = 1
    return encode(mask)


def odd_set(seed, with_boxes=True, num_images=6, num_categories=8, most=12):
    """Annotations as ``read_lvis_json`` returns them, categories by id, and results."""
    rng = np.random.default_rng(seed)

    def chance(p):
        return rng.random() < p

    def pick(values):
        return values[rng.integers(len(values))]

    start = pick([0, 1, 2**31, 2**53])
    category_ids = (start + rng.choice(100, num_categories, replace=False)).tolist()
    image_ids = (start + rng.choice(1000, num_images, replace=False)).tolist()
    annotation_ids = (1 + start + rng.permutation(500)).tolist()
    categories = [
        {"id": c, "name": str(c), "frequency": pick("rcf"), "image_count": 1}
        for c in sorted(category_ids)
    ]
    images, annotations, results = [], [], []

    def box():
        x, y = rng.integers(-5, 110, 2)
        w, h = pick([(32, 32), (96, 96), (16, 64), rng.integers(1, 110, 2), rng.uniform(1, 99, 2)])
        return [v.item() if hasattr(v, "item") else v for v in (x, y, w, h)]

    def degenerate(b):
        return pick([[*b[:2], 0, b[3]], [*b[:2], b[2], 0], [0, 0, 0, 0], [*b[:2], -9, 9]])

    for image_id in image_ids:
        images.append(
            {
                **{"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": "x.jpg"},
                "neg_category_ids": rng.choice([*category_ids, 7**9], rng.integers(4)).tolist(),
                "not_exhaustive_category_ids": rng.choice(
                    [*category_ids, 7**9], rng.integers(3)
                ).tolist(),
            }
        )
        if chance(0.15):
            continue  # neither annotations nor results
        boxes = []
        for _ in range(rng.integers(0, 6)):
            b = pick(boxes) if boxes and chance(0.2) else box()  # duplicates
            boxes.append(b)
            annotation = {
                **{"id": annotation_ids.pop(), "image_id": image_id},
                "category_id": pick(category_ids[:-2]),  # the others are absent
                "area": pick([b[2] * b[3]] * 6 + [0, -1.0, 1024, 9216, 1e10, 3e10, 1e-9, np.inf]),
                "bbox": degenerate(b) if chance(0.05) else b,
            }
            if chance(0.1):
                annotation["ignore"] = pick([0, 1, True])
            if chance(0.1):
                annotation["iscrowd"] = 1
            x, y, w, h = b
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotation["segmentation"] = pick([[polygon], [polygon, polygon], rectangle(*b)])
            if chance(0.05):
                annotation["segmentation"] = rectangle(0, 0, 0, 0)
            annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):
                near = [v + int(rng.integers(-6, 7)) * int(chance(0.5)) for v in b]
                results.append((image_id, annotation["category_id"], near))
        for _ in range(rng.integers(0, most)):
            results.append((image_id, pick([*category_ids, 7**9]), box()))
    entries = []
    for image_id, category_id, b in results:
        entry = {"image_id": image_id, "category_id": category_id}
        entry["score"] = pick([round(rng.random(), 1)] * 8 + [0, 1, 2, -0.5, np.inf])
        size = (HEIGHT, WIDTH) if chance(0.97) else (HEIGHT - 1, WIDTH)
        entry["segmentation"] = rectangle(0, 0, 0, 0) if chance(0.04) else rectangle(*b, size)
        if with_boxes:
            entry["bbox"] = degenerate(b) if chance(0.07) else b
        entries.extend([entry] * (2 if chance(0.1) else 1))
    entries = [dict(entries[i]) for i in rng.permutation(len(entries))]
    return {"images": images, "annotations": annotations, "categories": categories}, entries
