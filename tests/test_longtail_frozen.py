"""The benchmark's training of RoI heads on kept outputs of the frozen parts."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from longtail.frozen import KEPT, VersionsMapper, _padded, check_owner, trainer_of_heads
from tiny_trainer import NUM_CLASSES, make_trainer

from tde_det.errors import InputError
from tde_det.random_state import seeded


@pytest.fixture
def heads(tiny_data, tmp_path, monkeypatch):
    """A trainer whose RoI heads see all proposals: its losses depend on no draw."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_data))
    opts = (
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000, "SOLVER.MAX_ITER", 30),
        *("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "INPUT.MIN_SIZE_TRAIN", "(64, 128)"),
    )
    kind = trainer_of_heads(tmp_path / "kept")
    return make_trainer(tmp_path / "out", NUM_CLASSES, *opts, kind=kind)


def losses_of(forward, batch):
    with EventStorage():
        return {k: v.item() for k, v in forward(batch).items() if not k.startswith("loss_rpn")}


def test_losses_are_those_of_a_generalized_rcnn(heads):
    model = heads.model.train()
    for mapped in next(iter(heads.data_loader)):  # one by one: batches are padded otherwise
        expected = losses_of(lambda x: GeneralizedRCNN.forward(model, x), [mapped])
        assert losses_of(model, [mapped]) == pytest.approx(expected, rel=1e-4)
        read = torch.load(mapped[KEPT], weights_only=False)
        assert losses_of(model, [read]) == pytest.approx(expected, rel=1e-4)


def test_to_keep_an_image_draws_no_random_numbers(heads):
    """Else the RoIs that a step samples would depend on what is kept already."""
    (mapped, *_) = next(iter(heads.data_loader))
    before = torch.get_rng_state()
    with EventStorage():
        heads.model.train()._kept(mapped)
    assert torch.equal(torch.get_rng_state(), before)


def test_feature_maps_of_two_sizes_are_padded_with_zeros():
    maps = [torch.ones(1, 2, 3, 5), torch.ones(1, 2, 4, 2)]
    batch = _padded(maps)
    assert batch.shape == (2, 2, 4, 5) and batch.sum() == sum(m.sum() for m in maps)
    assert torch.equal(batch[:1, :, :3], maps[0]) and torch.equal(batch[1:, :, :, :2], maps[1])


def test_a_folder_is_of_one_detector(heads, tmp_path):
    check_owner(tmp_path, heads.model)
    check_owner(tmp_path, heads.model)
    heads.model.roi_heads.box_predictor[0].cls_score.weight.data += 1  # not frozen
    check_owner(tmp_path, heads.model)
    next(heads.model.backbone.parameters()).data += 1
    with pytest.raises(InputError, match="another backbone or RPN .* name another folder"):
        check_owner(tmp_path, heads.model)


def test_training_changes_heads_alone_and_keeps_every_version(heads, tmp_path):
    before = {name: x.clone() for name, x in heads.model.state_dict().items()}
    heads.train()
    changed = {n for n, x in heads.model.state_dict().items() if not torch.equal(x, before[n])}
    assert changed and {name.split(".")[0] for name in changed} == {"roi_heads"}
    files = [path.name.split("-", 1)[1] for path in (tmp_path / "kept").glob("*.pth")]
    assert set(files) == {"64.pth", "64-mirrored.pth", "128.pth", "128-mirrored.pth"}


def test_versions_differ_in_size_and_side(heads, tmp_path):
    mapper = VersionsMapper(heads.cfg, tmp_path)
    record = next(iter(heads.data_loader.dataset._dataset))
    with seeded(1):
        drawn = [mapper(record) for _ in range(40)]
    images = {x[KEPT].name.split("-", 1)[1][:-4]: x["image"] for x in drawn}
    assert {name: x.shape[1] for name, x in images.items()} == {
        "64": 64,
        "64-mirrored": 64,
        "128": 128,
        "128-mirrored": 128,
    }
    assert torch.equal(images["64"].flip(2), images["64-mirrored"])


def test_polygons_are_kept_too(heads, tmp_path):
    """Masks of photographs; those of the data above are bitmaps."""
    mapper = VersionsMapper(heads.cfg, tmp_path)
    instances = Instances((9, 9), gt_boxes=Boxes([[1.0, 1, 5, 5]]), gt_classes=torch.tensor([2]))
    instances.gt_masks = PolygonMasks([[[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]])
    for size in heads.cfg.INPUT.MIN_SIZE_TRAIN:
        for mirrored in ("", "-mirrored"):
            torch.save({"instances": instances}, tmp_path / f"7-{size}{mirrored}.pth")
    found = mapper({"image_id": 7})["instances"]
    assert torch.equal(found.gt_boxes.tensor, instances.gt_boxes.tensor)
    assert found.gt_masks.polygons[0][0].tolist() == [1.0, 1.0, 5.0, 1.0, 5.0, 5.0]
