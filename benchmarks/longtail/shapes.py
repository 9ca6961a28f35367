"""The sizes of the benchmark."""

from tde_det.data.mini_lvis.build import Settings

from .data import Photographs
from .pretraining import ALL_TRAINED
from .steps import Shape

# Each half of the validation images shows every class in 33 images.
DRAWINGS = Settings(val_images=800)
SMALL = Shape("small.yaml", DRAWINGS, (0.02, 0.04, 0.08), 600)
# All 1,203 classes, each in 25 of the images; a fifth of these show one of the 60.
OTHERS = Settings(num_classes=1203, train_images=240, val_images=6000, seed=1)
CCP = Photographs("ccp", "ccp_lvis_train.json", "ccp_lvis_val.json")
FEW = ("linear", "deconfounded", "rfs", "balanced_softmax", "seesaw", "rfs_deconfounded")
PRETRAINED = SMALL._replace(
    least_iterations=3000,  # seven epochs: some rows gain slowly, but for long
    pretraining=(OTHERS, 0.08, 8000),
    heads_alone=True,
)
SHAPES = {
    "small": PRETRAINED,
    # Data on which nothing was chosen when methods were: other images, other classes rare.
    "redrawn": PRETRAINED._replace(
        data=DRAWINGS._replace(seed=2),
        least_iterations=1300,  # shorter than small, as the pretraining is: to save time
        pretraining=(OTHERS, 0.08, 1000),
        rows=FEW,
    ),
    # What the pretraining on drawings is good for.
    "imagenet": SMALL._replace(opts=ALL_TRAINED, iterations=800),
    "photographs": Shape(
        "photographs.yaml",
        CCP,
        (0.005, 0.01, 0.02),
        400,
        least_iterations=2000,  # AP is so low that 1 AP is much
        pretraining=(CCP, 0.01, 800),
        heads_alone=True,
        rows=FEW,
    ),
    "full": Shape(
        "full.yaml",
        Settings(num_classes=1203, image_size=320, train_images=20_000, val_images=3_000),
        (0.01, 0.02, 0.04),
        6000,
        settings_per_pass=6,
    ),
    # Learns nothing.
    "tiny": Shape(
        "small.yaml",
        Settings(num_classes=12, image_size=64, train_images=24, val_images=16),
        (0.01, 0.02, 0.04),
        6,
        pretraining=(Settings(60, 96, 24, 48, seed=1), 0.01, 4),
        heads_alone=True,
        opts=(
            *("MODEL.ROI_HEADS.NUM_CLASSES", "12", "SOLVER.IMS_PER_BATCH", "2"),
            *("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "4", "SOLVER.WARMUP_ITERS", "1"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
            *("MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.NORM", "BN"),
        ),
    ),
}
