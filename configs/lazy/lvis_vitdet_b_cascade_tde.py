# ViTDet-B, Cascade Mask R-CNN, 100 epochs of LVIS v1: the config of Detectron2's ViTDet project,
# with TDE in place of the sigmoid classifier and its federated loss.
from functools import partial

from detectron2 import model_zoo
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from .lvis_lsj import dataloader, lr_multiplier, train
from .tde_heads import use_cascade

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
use_cascade(model)

train.ddp.fp16_compression = True
train.init_checkpoint = (
    "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 2e-4
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
