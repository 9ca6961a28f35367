"""A small LazyConfig: a stock Cascade Mask R-CNN for mini_lvis, as upstream writes such configs."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.data.samplers import RepeatFactorTrainingSampler

SIZE = 96

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up.stages.depth = 18
model.backbone.bottom_up.stages.pop("stride_in_1x1")  # R18 has no 1×1 convolutions
model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = "BN"
model.backbone.out_channels = 16
model.proposal_generator.head.in_channels = 16
model.proposal_generator.post_nms_topk = (60, 20)
model.pixel_std = [60.0, 60.0, 60.0]  # of a backbone that nothing has trained
model.roi_heads.num_classes = 12
model.roi_heads.batch_size_per_image = 32
for head in model.roi_heads.box_heads:
    head.input_shape.channels = 16
    head.fc_dims = [32]
for predictor in model.roi_heads.box_predictors:
    predictor.input_shape.channels = 32
    predictor.test_score_thresh = 0.0001
    predictor.test_topk_per_image = 30
    predictor.use_sigmoid_ce = True
    predictor.use_fed_loss = True
    predictor.fed_loss_num_classes = 6
    predictor.get_fed_loss_cls_weights = lambda: get_fed_loss_cls_weights("mini_lvis_train", 0.5)
model.roi_heads.mask_head.input_shape.channels = 16
model.roi_heads.mask_head.conv_dims = [16, 16]

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.lvis_custom = [
    dict(
        name=f"mini_lvis_{split}", json=f"mini_lvis/mini_lvis_{split}.json", image_root="mini_lvis"
    )
    for split in ("train", "val")
]
dataloader.train.dataset.names = "mini_lvis_train"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.3
    )
)
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True)]
dataloader.test.dataset.names = "mini_lvis_val"
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=SIZE, max_size=SIZE)
]

train = model_zoo.get_config("common/train.py").train
train.device = "cpu"
train.max_iter = 4
train.eval_period = 0
train.seed = 3

lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.01
