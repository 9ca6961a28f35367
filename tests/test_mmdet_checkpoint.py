"""Converted mmdet checkpoints against an implementation of the authors' network of its own."""

import functools
import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import ImageList

from tde_det import add_tde_config
from tde_det.engine.mmdet_checkpoint import (
    convert_mmdet_checkpoint,
    mmdet_conventions,
    read_mmdet_checkpoint,
)
from tde_det.errors import InputError

CLASSES, FC, FPN = 7, 24, 16
OPTS = (
    *("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.ROI_BOX_HEAD.FC_DIM", FC),
    *("MODEL.FPN.OUT_CHANNELS", FPN, "MODEL.ROI_MASK_HEAD.CONV_DIM", FPN),
    *("MODEL.RESNETS.DEPTH", 50),
)
STDS = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])


@functools.cache
def random_resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet50().eval()


def mmdet_state(stages=3, htc=True, linear=False):
    """Random weights under the authors' keys."""
    torch.manual_seed(0)
    resnet = random_resnet()
    state = {f"backbone.{k}": v for k, v in resnet.state_dict().items() if k[:3] != "fc."}
    for key, value in state.items():
        if ".bn" in key or "downsample.1" in key:
            value.copy_(torch.rand(value.shape) + 0.3) if value.dim() else None

    def layer(name, *shape):
        state[name + ".weight"] = torch.randn(shape) / torch.tensor(shape[1:]).prod().sqrt()
        state[name + ".bias"] = torch.randn(shape[1] if name.endswith("upsample") else shape[0])

    for i, channels in enumerate((256, 512, 1024, 2048)):
        layer(f"neck.lateral_convs.{i}.conv", FPN, channels, 1, 1)
        layer(f"neck.fpn_convs.{i}.conv", FPN, FPN, 3, 3)
    layer("rpn_head.rpn_conv", FPN, FPN, 3, 3)
    layer("rpn_head.rpn_cls", 3, FPN, 1, 1)
    layer("rpn_head.rpn_reg", 12, FPN, 1, 1)
    for i in [f"{i}." for i in range(stages)] if stages > 1 else [""]:
        box, mask = "roi_head.bbox_head." + i, "roi_head.mask_head." + i
        if linear:
            layer(box + "fc_cls", CLASSES + 1, FC)
        else:
            state[box + "fc_cls"] = torch.randn(CLASSES + 1, FC) / 5
            state[box + "causal_embed"] = torch.rand(1, FC) * 100
        layer(box + "fc_reg", 4 if stages > 1 else 4 * CLASSES, FC)
        layer(box + "shared_fcs.0", FC, FPN * 49)
        layer(box + "shared_fcs.1", FC, FC)
        for k in range(4):
            layer(f"{mask}convs.{k}.conv", FPN, FPN, 3, 3)
        if htc and i not in ("", "0."):
            layer(mask + "conv_res.conv", FPN, FPN, 1, 1)
        layer(mask + "upsample", FPN, FPN, 2, 2)
        layer(mask + "conv_logits", CLASSES, FPN, 1, 1)
    return state


def make_model(load_config, state, name="lvis_cascade_tde.yaml", *opts):
    cfg = load_config(name, *OPTS, *opts)
    cfg.merge_from_list(mmdet_conventions("Cascade" in cfg.MODEL.ROI_HEADS.NAME))
    model = build_model(cfg).eval()
    converted, left_out = convert_mmdet_checkpoint(state, model)
    model.load_state_dict(converted)
    return model, left_out


@pytest.fixture(scope="module")
def model():
    """A model of the same architecture."""
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_file(os.path.join(REPOSITORY, "configs/lvis_cascade_tde.yaml"))
    cfg.merge_from_list([*OPTS, *mmdet_conventions(cascade=True), "MODEL.DEVICE", "cpu"])
    return build_model(cfg)


def reference_head(state, prefix, x, alpha=1.5):
    """Factual logits, TDE logits, scores and deltas of pooled features, box by box."""
    p = {k[len(prefix) :]: v.double() for k, v in state.items() if k.startswith(prefix)}
    out = []
    for box in x.double():
        h = box.reshape(-1)
        for i in "01":
            h = (p[f"shared_fcs.{i}.weight"] @ h + p[f"shared_fcs.{i}.bias"]).clamp(min=0)
        y, direct = torch.zeros(CLASSES + 1).double(), torch.zeros(CLASSES + 1).double()
        for head in (slice(0, FC // 2), slice(FC // 2, FC)):
            f = h[head] / h[head].norm()
            e = p["causal_embed"][0, head] / p["causal_embed"][0, head].norm()
            for c in range(CLASSES + 1):
                w = p["fc_cls"][c, head] / (p["fc_cls"][c, head].norm() + 1 / 32)
                y[c] += 8 * f @ w
                direct[c] += 8 * alpha * (f @ e) * (e @ w)
        old, new = y.softmax(0), (y - direct).softmax(0)
        scores = torch.cat([new[:-1] * old[:-1].sum() / new[:-1].sum(), old[-1:]])
        deltas = p["fc_reg.weight"] @ h + p["fc_reg.bias"]
        out.append((y, y - direct, scores, deltas))
    return [torch.stack(column) for column in zip(*out)]


@pytest.mark.parametrize("stages", [3, 1])
def test_heads(load_config, stages):
    state = mmdet_state(stages)
    name = "lvis_cascade_tde.yaml" if stages > 1 else "lvis_mask_rcnn_tde.yaml"
    model, _ = make_model(load_config, state, name)
    heads, x = model.roi_heads, torch.randn(9, FPN, 7, 7)
    for k in range(stages):
        prefix = f"roi_head.bbox_head.{k}." if stages > 1 else "roi_head.bbox_head."
        box_head = heads.box_head[k] if stages > 1 else heads.box_head
        predictor = heads.box_predictor[k] if stages > 1 else heads.box_predictor
        y, tde, scores, deltas = reference_head(state, prefix, x)
        with torch.no_grad():
            own_y, own_deltas, features = predictor(box_head(x))
            weight, adjust = predictor.cls_score.class_weight(), predictor.adjustments["tde"]
            logits = predictor.adjustments(features, own_y, weight)
            own_tde = adjust.with_options(exempt=False)(features, own_y, weight)
        for own, other in ((own_y, y), (own_tde, tde), (own_deltas, deltas)):
            torch.testing.assert_close(own.double(), other, rtol=0, atol=1e-5)
        torch.testing.assert_close(logits.softmax(1).double(), scores, rtol=0, atol=1e-5)

        # delta = (target - mean) / std, mean 0
        boxes = torch.tensor([[10.0, 20, 50, 90]]).repeat(9, 1)
        d = deltas[:, :4] * torch.tensor(STDS[k])
        centre = torch.tensor([30.0, 55]) + d[:, :2] * torch.tensor([40.0, 70])
        half = torch.tensor([20.0, 35]) * d[:, 2:].exp()
        own = predictor.box2box_transform.apply_deltas(own_deltas[:, :4], boxes)
        expected = torch.cat([centre - half, centre + half], 1)
        torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-4)


def test_backbone_fpn_and_rpn(load_config):
    state = mmdet_state()
    model, left_out = make_model(load_config, state)
    resnet = random_resnet()
    image = torch.randn(1, 3, 64, 96)
    conv = {k.rsplit(".", 1)[0] for k in state}

    def apply(name, x, padding=0):
        assert name in conv
        return F.conv2d(x, state[name + ".weight"], state[name + ".bias"], padding=padding)

    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        levels = []
        for i in range(4):
            x = getattr(resnet, f"layer{i + 1}")(x)
            levels.append(apply(f"neck.lateral_convs.{i}.conv", x))
        for i in (2, 1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[2:])
        outs = [apply(f"neck.fpn_convs.{i}.conv", x, 1) for i, x in enumerate(levels)]
        outs.append(outs[-1][:, :, ::2, ::2])
        own = model.backbone(image)
        objectness, deltas = model.proposal_generator.rpn_head(list(own.values()))
        for k, (name, out) in enumerate(zip(("p2", "p3", "p4", "p5", "p6"), outs)):
            scale = out.abs().max()
            torch.testing.assert_close(own[name] / scale, out / scale, rtol=0, atol=1e-4)
            hidden = apply("rpn_head.rpn_conv", out, 1).relu()
            for mine, conv_name in ((objectness, "rpn_cls"), (deltas, "rpn_reg")):
                expected = apply(f"rpn_head.{conv_name}", hidden)
                scale = expected.abs().max()
                torch.testing.assert_close(mine[k] / scale, expected / scale, rtol=0, atol=1e-4)

    anchors = model.proposal_generator.anchor_generator(list(own.values()))
    for level, feature in enumerate(own.values()):
        stride, expected = 4 * 2**level, []
        for y in range(feature.shape[2]):
            for x in range(feature.shape[3]):
                for ratio in (0.5, 1.0, 2.0):
                    w, h = 8 * stride / ratio**0.5 / 2, 8 * stride * ratio**0.5 / 2
                    expected.append(
                        [stride * x - w, stride * y - h, stride * x + w, stride * y + h]
                    )
        torch.testing.assert_close(anchors[level].tensor, torch.tensor(expected))

    rgb = ImageList.from_tensors([torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)]).tensor[0]
    assert model.input_format == "RGB"
    assert model._move_to_current_device(rgb).sub(model.pixel_mean).abs().max() == 0
    assert model.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert all(k.endswith("num_batches_tracked") or ".mask_head." in k for k in left_out)


@pytest.mark.parametrize("htc, used", [(True, 0), (False, 2)])
def test_which_mask_head(load_config, htc, used):
    state = mmdet_state(htc=htc)
    model, left_out = make_model(load_config, state)
    heads = {k.split(".")[2] for k in left_out if "mask_head" in k}
    assert heads == set("012") - {str(used)}
    x = torch.randn(2, FPN, 14, 14)
    prefix = f"roi_head.mask_head.{used}."
    with torch.no_grad():
        expected = x
        for k in range(4):
            name = f"{prefix}convs.{k}.conv."
            expected = F.conv2d(expected, state[name + "weight"], state[name + "bias"], padding=1)
            expected = expected.relu()
        name = prefix + "upsample."
        expected = F.conv_transpose2d(expected, state[name + "weight"], state[name + "bias"], 2)
        name = prefix + "conv_logits."
        expected = F.conv2d(expected.relu(), state[name + "weight"], state[name + "bias"])
        own = model.roi_heads.mask_head.layers(x)
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_linear_classifier(load_config):
    state = mmdet_state(linear=True)
    model, _ = make_model(load_config, state, "lvis_cascade_baseline.yaml")
    x = torch.randn(4, FC)
    for k, predictor in enumerate(model.roi_heads.box_predictor):
        name = f"roi_head.bbox_head.{k}.fc_cls"
        expected = x @ state[name + ".weight"].t() + state[name + ".bias"]
        torch.testing.assert_close(predictor(x)[0], expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s.update({"roi_head.semantic_head.x": torch.zeros(1)}),
            "semantic_head.x of",
        ),
        (
            lambda s: s.update({"roi_head.bbox_head.1.fc_cls": torch.zeros(CLASSES + 3, FC)}),
            r"bbox_head.1.fc_cls .* \(10, 24\).*\(8, 24\).*NUM_CLASSES",
        ),
        (lambda s: s.pop("neck.fpn_convs.2.conv.bias"), "nothing for backbone.fpn_output4.bias"),
        (
            lambda s: s.pop("roi_head.bbox_head.0.causal_embed"),
            "nothing for .*0.adjustments.tde",
        ),
        (
            lambda s: s["roi_head.bbox_head.2.causal_embed"].fill_(float("nan")),
            "d .*not finite",
        ),
        (lambda s: s.update({"rpn_head.rpn_cls.weight": torch.zeros(6, FPN, 1, 1)}), "rpn_cls.wei"),
    ],
)
def test_what_does_not_fit(model, change, message):
    state = mmdet_state()
    change(state)
    with pytest.raises(InputError, match=message):
        convert_mmdet_checkpoint(state, model)


def test_unreadable_files(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(InputError, match="does not exist"):
        read_mmdet_checkpoint(str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_mmdet_checkpoint(str(path))
    torch.save({"model": {"a": torch.ones(1)}}, path)
    with pytest.raises(InputError, match="no key backbone.conv1.weight"):
        read_mmdet_checkpoint(str(path))


def test_command_line(model, tmp_path, monkeypatch, capsys):
    path = os.path.join(REPOSITORY, "tools/convert_reference.py")
    spec = importlib.util.spec_from_file_location("convert_reference", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    state = mmdet_state()
    source, target = tmp_path / "latest.pth", tmp_path / "out/model.pth"
    torch.save({"meta": {"epoch": 20}, "state_dict": state, "optimizer": {}}, source)
    argv = ["convert_reference.py", "MODEL.WEIGHTS", source, "--output", target, *OPTS]
    monkeypatch.setattr("sys.argv", list(map(str, argv)))
    tool.main()
    out = capsys.readouterr().out
    assert "INPUT.FORMAT RGB" in out and "Left out: roi_head.mask_head.2" in out

    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_file(str(tmp_path / "out/model.yaml"))
    assert cfg.INPUT.FORMAT == "RGB" and str(target) == cfg.MODEL.WEIGHTS
    assert torch.load(target)["model"].keys() == model.state_dict().keys()
    DetectionCheckpointer(model.eval()).load(str(target))
    torch.testing.assert_close(
        model.roi_heads.box_predictor[2].adjustments["tde"].feature_mean,
        state["roi_head.bbox_head.2.causal_embed"][0],
    )
    with torch.no_grad():
        image = {"image": torch.rand(3, 64, 64) * 255, "height": 64, "width": 64}
        assert "instances" in model([image])[0]

    with pytest.raises(SystemExit, match="model.pth exists already"):
        tool.main()
    for output, message in (
        (tmp_path / "model2.yaml", "is the config's name"),
        ("/proc/nowhere/model.pth", "cannot be written"),
    ):
        monkeypatch.setattr("sys.argv", list(map(str, [*argv[:4], output, *OPTS])))
        with pytest.raises(SystemExit, match=message):
            tool.main()
