# Box predictors and cascade heads with TDE, for any LazyConfig model of Detectron2.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead

from tde_det import TDEOutputLayers
from tde_det.adjustments import TDE


def tde_predictor(weights, **options):
    """What stands for ``L(FastRCNNOutputLayers)(...)``, with the paper's values for LVIS.

    ``weights`` are those of the box transform, ``options`` those of ``FastRCNNOutputLayers``.
    """
    return L(TDEOutputLayers)(
        input_shape=ShapeSpec(channels=1024),
        box2box_transform=L(Box2BoxTransform)(weights=weights),
        num_classes="${model.roi_heads.num_classes}",
        test_score_thresh=0.0001,
        test_topk_per_image=300,
        classifier=dict(kind="causal_norm", num_heads=2, tau=16.0, gamma=1 / 32),
        # A plain dict would not be instantiated.
        adjustments=L("builtins.dict")(
            tde=L(TDE)(feature_dim=1024, num_heads=2, mu=0.9998, alpha=1.5)
        ),
        **options,
    )


def use_cascade(model):
    """Turn the heads of a Mask R-CNN into those of ViTDet's cascade, with TDE in each stage."""
    for key in ("box_head", "box_predictor", "proposal_matcher"):
        model.roi_heads.pop(key)
    model.roi_heads.update(
        _target_=CascadeROIHeads,
        num_classes=1203,
        box_heads=[
            L(FastRCNNConvFCHead)(
                input_shape=ShapeSpec(channels=256, height=7, width=7),
                conv_dims=[256, 256, 256, 256],
                fc_dims=[1024],
                conv_norm="LN",
            )
            for _ in range(3)
        ],
        box_predictors=[
            tde_predictor((w1, w1, w2, w2), cls_agnostic_bbox_reg=True)
            for w1, w2 in [(10, 5), (20, 10), (30, 15)]
        ],
        proposal_matchers=[
            L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
            for iou in (0.5, 0.6, 0.7)
        ],
    )
