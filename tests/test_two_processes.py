"""What two processes must have in common, and must divide: with gloo, on the CPU.

Two processes do everything once, and the tests look at what they wrote. Evaluation by two is in
test_continued_evaluation.py, the tools are in test_tools.py and test_slurm.py.
"""

import itertools
import json
import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import REPOSITORY, end_within, join_gloo
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from naive_samplers import objects, take
from test_losses import batch, make
from test_train_loader import batches, config

from tde_det.adjustments.feature_mean import FeatureMean
from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.data.samplers import ClassSampler
from tde_det.engine import Trainer, setup

C, STEPS = 5, 3
MODES = {
    # With a step of 0 both see the same features, whatever the number of processes.
    "frozen": ("MODEL.LONG_TAIL.LOSS", "seesaw", "SOLVER.BASE_LR", "0.0"),
    "seesaw": ("MODEL.LONG_TAIL.LOSS", "seesaw", "SOLVER.BASE_LR", "0.003"),
    "eqlv2": (
        *("MODEL.LONG_TAIL.LOSS", "eqlv2", "SOLVER.BASE_LR", "0.003"),
        *("MODEL.TDE.ALPHA", "0.0"),  # of softmax alone
    ),
}


def opts_of(out, mode):
    """A training without anything random but the order of images, two a step."""
    everything = 10_000  # boxes: none are sampled
    return [
        *("MODEL.ROI_HEADS.NUM_CLASSES", str(C), "MODEL.DEVICE", "cpu", "SEED", "7"),
        *("MODEL.RESNETS.NORM", "", "MODEL.FPN.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", ""),
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", str(everything), "INPUT.RANDOM_FLIP", "none"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", str(everything), "INPUT.MIN_SIZE_TRAIN", "(64,)"),
        *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
        *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", str(STEPS), "SOLVER.STEPS", "()"),
        *("SOLVER.WARMUP_ITERS", "0", "DATASETS.TEST", "()", "OUTPUT_DIR", str(out), *MODES[mode]),
    ]


def train(out, mode, kill_at=None):
    """The state after a few steps, and each step's images with their numbers of objects."""
    args = default_argument_parser().parse_args([])
    args.config_file = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"
    args.opts = opts_of(out, mode)
    trainer = Trainer(setup(args))
    drawn = []

    def watch(_, inputs):
        if len(drawn) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        drawn.append([(record["image_id"], len(record["instances"])) for record in inputs[0]])

    model = getattr(trainer.model, "module", trainer.model)
    torch.manual_seed(0)
    for parameter in model.parameters():  # the same in a process alone, whose seed is another
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.register_forward_pre_hook(watch)
    trainer.train()
    return model.state_dict(), drawn


def draw(cfg):
    """Twelve batches, and the last seven again, resumed; with no seed in common but the shared."""
    drawn, state = batches(cfg, 12)
    (state,) = comm.all_gather(state)[:1]
    return drawn, batches(cfg, 7, (5, state))[0], state


def feature_batches(rank):
    """Rank 1 has fewer boxes, later none in the foreground, then none at all, then a NaN."""
    generator = torch.Generator().manual_seed(rank)
    for step in range(5):
        x = torch.randn(4 + 3 * rank, 8, generator=generator)
        keep = torch.rand(len(x), generator=generator) < 0.6
        if rank == 1 and step == 1:
            keep[:] = False
        if rank == 1 and step == 2:
            x, keep = x[:0], keep[:0]
        if rank == 1 and step == 3:
            x[keep.nonzero()[0, 0], 0] = float("nan")
        if step == 4:
            keep[:] = False
        yield x, keep


def loss_batches(rank):
    for step in range(4):
        # uneven ranks, and one without boxes
        yield batch(10 * step + rank, size=[[5, 9], [0, 4], [3, 0], [6, 6]][step][rank])


def states(module, update, inputs):
    """What each call gives, and the module's state after it."""
    found = []
    for pair in inputs:
        value = update(*pair)
        found.append((value, {k: v.clone() for k, v in module.state_dict().items()}))
    return found


def worker(rank, folder):
    torch.set_num_threads(1)
    join_gloo(rank, folder)
    comm.create_local_process_group(2)
    np.random.seed(rank)
    found = {mode: train(folder / mode, mode) for mode in MODES}
    module = FeatureMean(8, 0.9)
    found["feature mean"] = states(module, module.update_mean, feature_batches(rank))
    for name in ("eqlv2", "seesaw"):
        loss = make(name)
        found[f"loss {name}"] = states(loss, loss, loss_batches(rank))
    records = [
        {"image_id": i, "width": 5 + i % 3, "height": 6, "annotations": [{"category_id": i // 9}]}
        for i in range(50)
    ]
    DatasetCatalog.register("records", lambda: records)
    cfg = config("SquareRootSampler", ("records",))
    cfg.SOLVER.IMS_PER_BATCH = 4
    found["drawn"] = draw(cfg)
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()  # gloo may abort a process whose peer has left
    dist.destroy_process_group()


def killed_worker(rank, folder):
    torch.set_num_threads(1)
    join_gloo(rank, folder)
    comm.create_local_process_group(2)
    train(folder / "out", "seesaw", kill_at=1 if rank == 1 else None)


def start_two(target, folder):
    context = mp.get_context("spawn")
    processes = [context.Process(target=target, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A training set half of whose images have nothing in them."""
    root = tmp_path_factory.mktemp("datasets")
    build_mini_lvis(str(root / "mini_lvis"), Settings(C, 64, train_images=8, val_images=2, seed=1))
    path = root / "mini_lvis/mini_lvis_train.json"
    content = json.loads(path.read_text())
    empty = {image["id"] for image in content["images"][::2]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in empty]
    path.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


@pytest.fixture(scope="module")
def ranks(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert end_within(start_two(worker, folder), 400) == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("mode", MODES)
def test_training_leaves_the_same(ranks, mode):
    """Weights, feature mean and the loss's statistics: every bit of them."""
    states = [rank[mode][0] for rank in ranks]
    loss = "positive_gradient" if mode == "eqlv2" else "samples"
    for stage in range(3):
        assert states[0][f"roi_heads.box_predictor.{stage}.adjustments.tde.feature_mean"].any()
    assert any(key.endswith(loss) and value.any() for key, value in states[0].items())
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_a_rank_had_no_foreground(ranks):
    counts = [[sum(n for _, n in step) for step in rank["frozen"][1]] for rank in ranks]
    assert any(one == 0 < other or other == 0 < one for one, other in zip(*counts))


def test_training_alone_leaves_the_same(ranks, tmp_path, data):
    """The same total batch on one process: the same images, the same mean and statistics."""
    state, drawn = train(tmp_path, "frozen")
    shares = zip(*(rank["frozen"][1] for rank in ranks))
    assert [sorted(step) for step in drawn] == [sorted(sum(share, [])) for share in shares]
    for rank in ranks:
        assert all(len(step) == 1 for step in rank["frozen"][1])
    for key, value in ranks[0]["frozen"][0].items():
        difference = (value.double() - state[key].double()).norm()
        assert difference <= 1e-6 * state[key].double().norm(), key


def test_feature_mean_equals_that_of_all_boxes(ranks):
    module = FeatureMean(8, 0.9)
    pairs = zip(feature_batches(0), feature_batches(1))
    joined = [tuple(map(torch.cat, zip(*pair))) for pair in pairs]
    for (_, single), *both in zip(
        states(module, module.update_mean, joined), *(rank["feature mean"] for rank in ranks)
    ):
        for key, value in single.items():
            assert torch.equal(both[0][1][key], both[1][1][key])
            torch.testing.assert_close(both[0][1][key], value)


@pytest.mark.parametrize("name", ["eqlv2", "seesaw"])
def test_loss_equals_that_of_all_boxes(ranks, name):
    loss, pairs = make(name), [*zip(loss_batches(0), loss_batches(1))]
    joined = [tuple(map(torch.cat, zip(*pair))) for pair in pairs]
    of_ranks = zip(*(rank[f"loss {name}"] for rank in ranks))
    for pair, (value, single), both in zip(pairs, states(loss, loss, joined), of_ranks):
        for key, buffer in single.items():
            assert torch.equal(both[0][1][key], both[1][1][key])
            torch.testing.assert_close(both[0][1][key], buffer)
        sizes = [len(labels) for _, labels in pair]
        total = sum(size * one for size, (one, _) in zip(sizes, both))
        torch.testing.assert_close(total / sum(sizes), value)


def test_each_draws_its_share(ranks):
    (first, again, state), (second, again_2, _) = (rank["drawn"] for rank in ranks)
    assert first[5:] == again and second[5:] == again_2
    classes = [[i // 9] for i in range(50)]
    whole = take(ClassSampler(objects(classes), seed=state["seeds"]["_seed"], power=0.5), 60)
    for rank, drawn in enumerate((first, second)):
        of_rank = Counter(whole[rank::2])
        assert not Counter(i for i, _ in itertools.chain(*drawn)) - of_rank


def test_a_killed_process_ends_the_other(data, tmp_path):
    codes = end_within(start_two(killed_worker, tmp_path), 300)
    assert codes[1] == -signal.SIGKILL and codes[0] > 0
