# Swin-B, Cascade Mask R-CNN, 50 epochs of LVIS v1: the config of Detectron2's ViTDet project, with
# TDE in place of the sigmoid classifier and its federated loss.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from .lvis_lsj import dataloader, lr_multiplier, train
from .tde_heads import use_cascade

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
constants = model_zoo.get_config("common/data/constants.py").constants
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std
model.input_format = "RGB"
model.backbone.bottom_up = L(SwinTransformer)(
    depths=[2, 2, 18, 2], drop_path_rate=0.3, embed_dim=128, num_heads=[4, 8, 16, 32]
)
model.backbone.in_features = ("p0", "p1", "p2", "p3")
model.backbone.square_pad = 1024
model.backbone.norm = model.roi_heads.mask_head.conv_norm = "LN"
model.proposal_generator.head.conv_dims = [-1, -1]
use_cascade(model)

train.ddp.fp16_compression = True
train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth"
train.max_iter = 156250 // 2  # 50 epochs
lr_multiplier.warmup_length = 250 / train.max_iter

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-4
optimizer.weight_decay = 0.05
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}
