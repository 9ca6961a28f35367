"""The configuration keys that tde_det adds to Detectron2's."""

from detectron2.config import CfgNode as CN


def add_tde_config(cfg: CN) -> None:
    """Add ``MODEL.TDE``, ``DATASETS.LVIS_CUSTOM`` and ``TEST.LVIS_BACKEND`` to a config."""
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
    # α: how much of the mean direction's effect inference removes. 0 turns TDE off. Training does
    # not depend on it, so a checkpoint can be evaluated at any α.
    cfg.MODEL.TDE.ALPHA = 1.5
    # Replace ALPHA, per stage, by 1 / (mean foreground cosine to the mean direction), measured
    # during training and stored in the checkpoint. ALPHA 0 still turns TDE off.
    cfg.MODEL.TDE.AUTO_ALPHA = False
    # Keep each box's background probability as it is without TDE.
    cfg.MODEL.TDE.BACKGROUND_EXEMPT = True

    # Data sets in LVIS json format, registered by these names for DATASETS.TRAIN and TEST: a list
    # of {"name": ..., "json": ..., "image_root": ...}. Relative paths start at the current folder.
    # See datasets/README.md for what such a json may and may not contain.
    cfg.DATASETS.LVIS_CUSTOM = []

    # What computes LVIS metrics: "hotcoco", fast and equal to lvis-api, or "lvis", lvis-api itself.
    cfg.TEST.LVIS_BACKEND = "hotcoco"
