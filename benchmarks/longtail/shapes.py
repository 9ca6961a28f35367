"""The sizes of the benchmark."""

from steps import Shape

from tde_det.data.mini_lvis.build import Settings

SHAPES = {
    # Halves of 400 images show every class in 33 images.
    "small": Shape("small.yaml", Settings(val_images=800), (0.02, 0.04, 0.08), 800),
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
