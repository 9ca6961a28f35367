# R50-FPN, Mask R-CNN, from scratch, 100 epochs of LVIS v1 with large scale jitter: Detectron2's
# "new baseline" for COCO, with TDE.
from detectron2 import model_zoo

from .lvis_lsj import dataloader, lr_multiplier, train
from .tde_heads import tde_predictor

baseline = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
model, optimizer = baseline.model, baseline.optimizer
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor = tde_predictor((10, 10, 5, 5))
dataloader.train.mapper.image_format = "BGR"

train.ddp.fp16_compression = True
lr_multiplier.warmup_length = 500 / train.max_iter
lr_multiplier.warmup_factor = 0.067
