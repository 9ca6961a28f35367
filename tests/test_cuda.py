"""On a GPU all is as on the CPU: ``pytest -m cuda``. Without CUDA these tests are skipped.

``TDE_TEST_DEVICE=cpu`` runs them on the CPU, to try the tests themselves.
"""

import json
import math
import os

import pytest
import torch
import torch.distributed as dist
from conftest import REPOSITORY
from detections import scene as boxes_and_scores  # of the benchmarks
from detectron2.engine import default_argument_parser
from detectron2.utils.events import EventStorage
from masks import scene as masks_and_boxes
from test_adjustments import make
from test_box_predictor import ALL, CLASSES, TINY, make_inputs, tiny_model
from test_tools import run
from torch import nn

from tde_det.adjustments import ADJUSTMENTS, Adjustments
from tde_det.class_counts import ClassCounts
from tde_det.classifiers import KINDS, CausalNormClassifier
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.data.rle import encode_masks
from tde_det.engine import Trainer, setup
from tde_det.inference.box_inference import top_detections
from tde_det.losses import LOSSES

DEVICE = os.environ.get("TDE_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA"),
]
HEADS = pytest.mark.parametrize("heads", ["TDECascadeROIHeads", "TDEStandardROIHeads"])
N, C, D = 200, 6, 8  # C and D are those of test_adjustments
# Every anchor and every proposal counts: which are drawn depends on the device.
ALL_SAMPLES = (
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.RPN.POSITIVE_FRACTION", 1.0),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
)


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Without TF32, which has a mantissa of 10 bits."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found, expected, tolerance):
    """Up to ``tolerance``, absolute for numbers below 1 and relative for others."""
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_head(name, kind):
    torch.manual_seed(0)
    classifier = CausalNormClassifier(D, C, kind=kind)
    adjustments = Adjustments({name: make(name).float()})

    def scores(device):
        x = random(N, D).to(device)
        head, adjust = classifier.to(device), adjustments.to(device)
        return adjust(x, head(x), head.class_weight()).softmax(dim=1)

    expected = scores("cpu")
    assert_close(scores(DEVICE), expected, 1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if "federated" not in name])
def test_losses_and_their_gradients(name):
    """Federated losses draw classes, by the generator of the device."""
    counts = torch.tensor([0, 3, 900, 20, 7, 1])

    def loss_of(device):
        logits = random(N, C + 1).to(device).requires_grad_()
        loss = LOSSES[name](C, counts=ClassCounts(counts, counts, 1000)).to(device)
        value = loss(logits, (torch.arange(N) % (C + 1)).to(device))
        value.backward()
        return value.detach(), logits.grad

    for found, expected in zip(loss_of(DEVICE), loss_of("cpu")):
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("pairs", [500, 50_000, 500_000])
def test_detections(pairs):
    boxes, scores = boxes_and_scores(pairs, torch.Generator().manual_seed(0))
    found, expected = (
        top_detections(boxes.to(device), scores.to(device), (800, 1333), 1e-4, 0.5, 300)
        for device in (DEVICE, "cpu")
    )
    for a, b in zip(found, expected):
        assert_close(a, b, 0)


def test_masks():
    shape = (480, 640)
    masks, boxes = masks_and_boxes(50, 80, shape, torch.Generator().manual_seed(0))
    found = encode_masks(masks.to(DEVICE), boxes.to(DEVICE), shape)
    assert found == encode_masks(masks, boxes, shape)


@HEADS
def test_training_step(heads, load_config):
    def step(device):
        model = tiny_model(load_config, heads, *ALL_SAMPLES, "MODEL.DEVICE", device).train()
        with EventStorage():
            losses = model(make_inputs())
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        buffers = {name: b for name, b in model.named_buffers() if "feature_mean" in name}
        return losses, {**gradients, **buffers}

    (losses, gradients), (expected, expected_gradients) = step(DEVICE), step("cpu")
    for name, value in expected.items():
        assert_close(losses[name].detach(), value.detach(), 1e-3)
    for name, value in expected_gradients.items():
        found, scale = gradients[name], value.norm().clamp(min=1e-3)
        assert_close(found.norm() / scale.to(DEVICE), value.norm() / scale, 1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_amp_training(loss, dtype, load_config):
    """It begins with the loss of float32, and stays finite."""
    opts = ("MODEL.LONG_TAIL.LOSS", loss, "MODEL.DEVICE", DEVICE, "MODEL.TDE.ALPHA", 0.0)
    model = tiny_model(load_config, "TDEStandardROIHeads", *ALL_SAMPLES, *opts).train()
    predictor, inputs = model.roi_heads.box_predictor, make_inputs()
    criterion = predictor.classification_loss
    if criterion is not None:
        criterion.lacks_counts = False  # there is no data set to count in
    start = predictor.cls_score.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=256.0, enabled=dtype is torch.float16)

    def losses(enabled):
        torch.manual_seed(0)
        if criterion is not None:
            criterion.reset_statistics()
        with EventStorage(), torch.autocast(DEVICE, dtype, enabled):
            return model(inputs)

    found, expected = losses(True)["loss_cls"].item(), losses(False)["loss_cls"].item()
    assert found == pytest.approx(expected, rel=0.1)
    for _ in range(3):
        total = sum(losses(True).values())
        assert math.isfinite(total.item())
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
    weight, mean = predictor.cls_score.weight, predictor.adjustments["tde"].feature_mean
    assert torch.isfinite(weight).all() and not torch.equal(weight, start)
    assert mean.dtype == torch.float32 and torch.isfinite(mean).all() and mean.any()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    build_mini_lvis(str(root / "mini_lvis"), Settings(CLASSES, 64, 8, 4, seed=1))
    return root


OPTIONS = (
    *("--config-file", "configs/mini_lvis_cascade_tde.yaml"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", str(CLASSES), "SOLVER.MAX_ITER", "3"),
)


def test_evaluation(data, tmp_path, monkeypatch):
    """The same detections, in the same files, up to rounding."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    found = {}
    for device in (DEVICE, "cpu"):
        args = default_argument_parser().parse_args([])
        args.config_file = f"{REPOSITORY}/{OPTIONS[1]}"
        opts = (*OPTIONS[2:], *ALL, *TINY, "MODEL.DEVICE", device, "SEED", 1, "MODEL.WEIGHTS", "")
        args.opts = list(map(str, (*opts, "OUTPUT_DIR", tmp_path / device)))
        cfg = setup(args)
        torch.manual_seed(1)
        model = Trainer.build_model(cfg).eval()
        metrics = Trainer.test(cfg, model)
        results = json.loads(
            (tmp_path / device / "inference/lvis_instances_results.json").read_text()
        )
        found[device] = metrics, sorted(result["score"] for result in results)
    (metrics, scores), (expected, expected_scores) = found[DEVICE], found["cpu"]
    assert scores == pytest.approx(expected_scores, abs=1e-4) and len(scores) > 100
    for task in ("bbox", "segm"):
        assert metrics[task]["AP"] == pytest.approx(expected[task]["AP"], abs=0.5)


@pytest.mark.parametrize("amp", ["True", "False"])
def test_training_and_evaluation_by_the_tool(amp, data, tmp_path):
    words = (
        "--config-file",
        "configs/mini_lvis_cascade_tde.yaml",
        "OUTPUT_DIR",
        tmp_path,
        *OPTIONS,
    )
    words += ("MODEL.DEVICE", DEVICE, "SOLVER.AMP.ENABLED", amp)
    done = run(data, "tools/train_net.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "inference/metrics.json").read_text())["bbox"]
    assert ("is now" in done.stderr + done.stdout) == (DEVICE == "cpu" and amp == "True")


def test_one_process_of_a_group(data, tmp_path):
    """NCCL on a GPU."""
    words = (
        "--config-file",
        "configs/mini_lvis_cascade_tde.yaml",
        "OUTPUT_DIR",
        tmp_path,
        *OPTIONS,
    )
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    done = run(data, *launcher, "tools/train_net.py", *words, "MODEL.DEVICE", DEVICE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "inference/metrics.json").read_text())["bbox"]


def test_sums_over_processes(tmp_path):
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        x = torch.arange(3.0, device=DEVICE)
        dist.all_reduce(x)
        assert x.tolist() == [0, 1, 2]
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1).to(DEVICE))
        model(torch.ones(4, 2, device=DEVICE)).sum().backward()
        assert model.module.bias.grad.item() == 4
    finally:
        dist.destroy_process_group()
