"""The pictures of mini_lvis: cutouts and their licences, backgrounds, shadows, exact masks."""

import re

import cv2
import numpy as np
import pytest

from tde_det.data.mini_lvis import scenes
from tde_det.data.mini_lvis.backgrounds import PLACES, draw_background
from tde_det.data.mini_lvis.cutouts import ASSETS, load_cutouts
from tde_det.data.mini_lvis.scenes import MIN_PIXELS, compose_scene
from tde_det.errors import InputError

SETS = ("fluent-emoji-3d", "fluent-emoji-flat", "noto", "twemoji", "emojione")


def test_every_class_has_drawings_of_four_or_five_artists():
    names, cutouts = load_cutouts()
    assert len(names) == len(set(names)) == len(cutouts) == 1203
    counts = [len(drawings) for drawings in cutouts]
    assert min(counts) >= 4 and max(counts) == len(SETS)
    assert counts == sorted(counts, reverse=True)
    seen = set()
    for drawings in cutouts:
        for drawing in drawings:
            assert drawing.shape == (64, 64, 4) and drawing.dtype == np.uint8
            alpha = drawing[..., 3]
            assert (alpha > 127).sum() > 100
            # Nothing of a neighbour in the sheet, whose border is blurred by the compression.
            assert max(a.max() for a in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])) < 64
            seen.add(drawing.tobytes())
    assert len(seen) == sum(counts)


def test_sheet_is_small_and_licensed():
    assert (ASSETS / "cutouts.webp").stat().st_size <= 10e6
    text = (ASSETS / "LICENSE.md").read_text()
    script = (ASSETS / "build_cutouts.py").read_text()
    for name in SETS:
        (version,) = re.findall(rf"/{name}@(\S+)", script)
        assert re.search(rf"/{name}` {re.escape(version)}\b", text), name


def primary_cutouts():
    """A red, a green and a blue cutout of random outlines, so that a pixel tells who covers it."""
    rng = np.random.default_rng(5)
    cutouts = np.zeros((3, 64, 64, 4), np.uint8)
    for i in range(3):
        spots = cv2.resize(rng.random((6, 6), np.float32), (64, 64), interpolation=cv2.INTER_CUBIC)
        cutouts[i, ..., i] = 255
        cutouts[i, ..., 3] = np.where(spots > 0.35, 255, 0)
    return list(cutouts)


@pytest.mark.parametrize("seed", range(8))
def test_masks_are_what_the_pixels_show(seed, monkeypatch):
    monkeypatch.setattr(scenes, "shift_colors", lambda rng: np.eye(3, dtype=np.float32))
    monkeypatch.setattr(
        scenes, "draw_background", lambda rng, size: (np.zeros((size, size, 3), np.float32), 20.0)
    )
    monkeypatch.setattr(scenes, "cast_shadow", lambda *_: None)
    image, masks = compose_scene(np.random.default_rng(seed), primary_cutouts(), 96)
    checked = 0
    for y in range(96):
        for x in range(96):
            # The last object's colour is its alpha; the one below shines through the rest of it.
            left, owner, sure = 1.0, None, True
            for i in (2, 1, 0):
                alpha = float(image[y, x, i]) / 255 / left if left > 0.05 else 0.0
                sure &= abs(alpha - 0.5) > 0.01 / left
                if alpha > 0.5 and owner is None:
                    owner = i
                    break
                left *= 1 - alpha
            if sure:
                checked += 1
                assert [bool(mask[y, x]) for mask in masks] == [i == owner for i in range(3)]
    assert checked > 9000


def test_shadows_darken_and_are_in_no_mask(monkeypatch):
    cutouts = [load_cutouts()[1][i][0] for i in range(3)]
    image, masks = compose_scene(np.random.default_rng(1), cutouts, 128)
    shadow = scenes.cast_shadow
    monkeypatch.setattr(scenes, "cast_shadow", lambda *_: None)
    bright, same = compose_scene(np.random.default_rng(1), cutouts, 128)
    assert np.array_equal(masks, same)
    assert (image <= bright).all()
    outside = ~np.any(masks, axis=0)
    assert (image[outside].astype(int) < bright[outside] - 20.0).any()

    # On an empty picture: at the foot of an upright bar, and to the side that the light is not on.
    for lean in (0.5, -0.5):
        alpha = np.zeros((40, 40), np.float32)
        alpha[5:35, 14:26] = 1
        ground = np.full((100, 100, 3), 200, np.float32)
        shadow(ground, alpha, 30, 30, lean, 0.4)
        dark = 200 - ground[..., 0]
        assert 0.3 * 200 < dark.max() <= 0.4 * 200 + 1e-3
        assert dark[62:65, 46:54].min() > 20 and dark[:45].max() < 1 and dark[75:].max() < 1
        side = dark[:, 50:].sum() - dark[:, :50].sum()
        assert side * lean > 0


@pytest.mark.parametrize("size", [16, 64, 129])
def test_backgrounds(size):
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(4 * len(PLACES)):
        picture, horizon = draw_background(rng, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.float32
        assert picture.min() >= 0 and picture.max() <= 255 and 0 < horizon < size / 2
        above, below = picture[: int(0.6 * horizon)], picture[int(horizon + 0.1 * size) :]
        assert np.abs(above.mean((0, 1)) - below.mean((0, 1))).max() > 8
        pictures.append(picture)
    assert np.std([p.mean((0, 1)) for p in pictures], axis=0).min() > 15


def test_objects_are_never_lost_in_crowds():
    cutouts = [drawings[-1] for drawings in load_cutouts()[1]]
    image, masks = compose_scene(np.random.default_rng(0), cutouts[:40], 320)
    assert image.shape == (320, 320, 3) and image.dtype == np.uint8
    assert len(masks) == 40 and min(m.sum() for m in masks) >= MIN_PIXELS
    thin = np.zeros((64, 64, 4), np.uint8)
    thin[:, 30:33] = 255  # 0.56 pixels wide at the least side
    for seed in range(5):
        masks = compose_scene(np.random.default_rng(seed), [thin] * 12, 96)[1]
        assert min(m.sum() for m in masks) >= MIN_PIXELS


def test_too_many_objects():
    with pytest.raises(InputError, match="300 objects do not fit into 64×64 pixels"):
        compose_scene(np.random.default_rng(0), [load_cutouts()[1][0][0]] * 300, 64)
    full = compose_scene(np.random.default_rng(0), [load_cutouts()[1][0][0]] * 20, 64)
    assert len(full[1]) == 20
