"""The sizes of the benchmark."""

from tde_det.data.mini_lvis.build import Settings

from .steps import Shape

# Each half of the validation images shows every class in 33 images.
SMALL = Shape("small.yaml", Settings(val_images=800), (0.02, 0.04, 0.08), 800)
SHAPES = {
    "small": SMALL,
    # The demo's backbone: what the pretrained one is good for.
    "scratch": SMALL._replace(
        opts=(
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.PIXEL_STD", "[64.0, 64.0, 64.0]"),
        )
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
        opts=(
            *("MODEL.ROI_HEADS.NUM_CLASSES", "12", "SOLVER.IMS_PER_BATCH", "2"),
            *("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "4", "SOLVER.WARMUP_ITERS", "1"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
            *("MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.NORM", "BN"),
        ),
    ),
}
