"""Interrupted evaluations, which continue and end with the bytes of uninterrupted ones."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import REPOSITORY, join_gloo
from detectron2.engine import default_argument_parser
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from tde_det.data.mini_lvis.build import Settings, build_mini_lvis
from tde_det.data.rle import encode_mask
from tde_det.engine import Trainer, load_model, setup
from tde_det.engine.fingerprint import model_hash, settings_hash
from tde_det.errors import InputError
from tde_det.evaluation import Detections, LongTailEvaluator
from tde_det.evaluation.unfinished import Unfinished, _read_stream
from tde_det.inference.run_length_masks import RunLengthMasks

FILES = ("lvis_instances_results.json", "metrics.json", "per_category_ap.csv")
CLASSES, IMAGES = 5, 7
CONFIG = f"{REPOSITORY}/configs/mini_lvis_cascade_tde.yaml"


def random_detections(seed, masks=True, ids=(7, 5, 2**53)):
    """Of three images, the second without any."""
    rng, made = np.random.default_rng(seed), []
    for image_id, count in zip(ids, (3, 0, 9)):
        instances = Instances((40, 60))
        instances.pred_boxes = Boxes(torch.from_numpy(rng.random((count, 4), np.float32) * 40))
        instances.scores = torch.from_numpy(rng.random(count, np.float32))
        instances.pred_classes = torch.from_numpy(rng.integers(0, 9, count))
        if masks:
            instances.pred_masks_rle = [
                encode_mask([rng.uniform(1, 40, 6).tolist()], 40, 60) for _ in range(count)
            ]
        made.append(Detections.from_instances(instances, image_id))
    return made


def assert_same(actual, expected):
    assert actual.to_dicts() == expected.to_dicts() and len(actual) == len(expected)
    for name in ("image_ids", "category_ids", "scores", "boxes", "mask_sizes"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or one.dtype == other.dtype and one.shape == other.shape


class TestFiles:
    @pytest.mark.parametrize("masks", [True, False])
    def test_what_is_read_is_what_was_written(self, tmp_path, masks):
        made = random_detections(0, masks)
        unfinished = Unfinished(str(tmp_path / "new/folder"), "mine", 3)
        assert unfinished.is_shared and unfinished.positions == [0, 1, 2]
        for detections in made:
            unfinished.append(detections)
        read = unfinished.collect()
        assert_same(read, Detections.concatenate([made[0], made[2]]))
        for rows in (slice(2, 5), np.array([11, 0, 4]), np.arange(12) % 3 == 0):
            assert_same(read[rows], Detections.concatenate([made[0], made[2]])[rows])
        unfinished.remove()
        assert list(tmp_path.rglob("*")) == [tmp_path / "new"]

    def test_killed_after_any_byte(self, tmp_path):
        made = random_detections(1)
        expected = Detections.concatenate([made[0], made[2]])
        first = Unfinished(str(tmp_path / "whole"), "mine", 3)
        sizes = []
        for detections in made:
            first.append(detections)
            (path,) = (tmp_path / "whole").glob("*.arrows")
            sizes.append(path.stat().st_size)
        whole = path.read_bytes()
        assert len(whole) == sizes[-1]  # nothing waits in a buffer
        folder = tmp_path / "cut"
        folder.mkdir()
        near = {size + k for size in (0, *sizes) for k in (-1, 0, 1, 4, 8)}
        for size in sorted({*range(0, len(whole), 97), *near} & {*range(len(whole) + 1)}):
            (folder / "a.arrows").write_bytes(whole[:size])
            second = Unfinished(str(folder), "mine", 3)
            done = sum(end <= size for end in sizes)
            assert second.positions == list(range(done, 3))
            for i in second.positions:
                second.append(made[i])
            assert_same(second.collect(), expected)
            for path in folder.iterdir():
                path.unlink()

    def test_every_interruption_has_its_file(self, tmp_path):
        made = random_detections(2)
        for position in range(3):
            unfinished = Unfinished(str(tmp_path), "mine", 3)
            assert unfinished.positions == list(range(position, 3))
            unfinished.append(made[position])
        assert len([*tmp_path.glob("*.arrows")]) == 3
        assert_same(unfinished.collect(), Detections.concatenate([made[0], made[2]]))

    def test_an_image_that_two_runs_did_counts_once(self, tmp_path):
        made = random_detections(3)
        runs = [Unfinished(str(tmp_path), "mine", 3) for _ in range(2)]
        for detections in made:
            for run in runs:
                run.append(detections)
        assert_same(runs[0].collect(), Detections.concatenate([made[0], made[2]]))

    def test_of_another_evaluation(self, tmp_path, caplog):
        for fingerprint in ("mine", "another"):
            unfinished = Unfinished(str(tmp_path), fingerprint, 3)
            assert unfinished.positions == [0, 1, 2]
            unfinished.append(random_detections(4)[0])
        assert "Evaluating anew" in caplog.text
        assert len([*tmp_path.glob("*.arrows")]) == 1

    def test_text_ids(self, tmp_path):
        made = random_detections(6, ids=("a", "b", "cde"))
        unfinished = Unfinished(str(tmp_path), "mine", 3)
        for detections in made:
            unfinished.append(detections)
        assert_same(unfinished.collect(), Detections.concatenate([made[0], made[2]]))

    def test_missing_images(self, tmp_path):
        unfinished = Unfinished(str(tmp_path), "mine", 3)
        unfinished.append(random_detections(5)[0])
        with pytest.raises(InputError, match="1 of 3 images: run the same command again"):
            unfinished.collect()

    def test_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="file/new cannot be written"):
            Unfinished(str(tmp_path / "file/new"), "mine", 3)

    def test_full_disk(self, tmp_path):
        unfinished = Unfinished(str(tmp_path), "mine", 2)
        unfinished.append(random_detections(5)[0])
        unfinished._writer.close()
        with open("/dev/full", "wb") as full:
            import pyarrow as pa

            schema = pa.ipc.open_stream(next(tmp_path.glob("*.arrows")).read_bytes()).schema
            unfinished._writer = pa.ipc.new_stream(pa.PythonFile(full), schema)
            with pytest.raises(InputError, match="cannot be written: .*No space left"):
                for _ in range(100):
                    unfinished.append(random_detections(5)[2])
                    unfinished._count = 0
            full.raw.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    settings = Settings(CLASSES, 64, train_images=8, val_images=IMAGES, seed=1)
    build_mini_lvis(str(root / "mini_lvis"), settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        cfg = config(root / "weights", "MODEL.WEIGHTS", str(root / "mini_lvis/mini_lvis_val.json"))
        torch.manual_seed(0)
        torch.save({"model": Trainer.build_model(cfg).state_dict()}, root / "weights.pth")
        yield root


def opts_of(out, data, *opts):
    return [
        *("MODEL.ROI_HEADS.NUM_CLASSES", str(CLASSES), "MODEL.DEVICE", "cpu"),
        *("DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(out)),
        *("MODEL.WEIGHTS", f"{data}/weights.pth", "TEST.DETECTIONS_PER_IMAGE", "20", *opts),
    ]


def config(out, *opts):
    args = default_argument_parser().parse_args(["--eval-only"])
    args.config_file = CONFIG
    args.opts = opts_of(out, os.environ["DETECTRON2_DATASETS"], *opts)
    return setup(args)


def evaluate(out, after=None, opts=(), how="raise", change=None):
    """Evaluate; interrupted before image ``after``. The metrics and how many images were seen."""
    cfg = config(out, *opts)
    model = load_model(cfg)
    if change:
        change(model)
    seen = []

    def hook(*_):
        if len(seen) == after:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Interrupted
        seen.append(0)

    model.backbone.register_forward_pre_hook(hook)
    return Trainer.test(cfg, model), len(seen)


class Interrupted(Exception):
    pass


def contents(folder):
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """The folder of an evaluation without interruption; its metrics as text: NaN is not NaN."""
    out = tmp_path_factory.mktemp("unbroken")
    metrics, seen = evaluate(out)
    assert seen == IMAGES and metrics["bbox"]["AP"] >= 0
    assert len(json.loads(contents(out / "inference")[0])) > IMAGES
    return out, repr(metrics)


def test_in_memory_and_on_disk_are_equal(data, unbroken, tmp_path):
    cfg = config(tmp_path)
    evaluator = LongTailEvaluator("mini_lvis_val", ("bbox", "segm"), str(tmp_path / "inference"))
    model, loader = load_model(cfg), Trainer.build_test_loader(cfg, "mini_lvis_val")
    metrics = inference_on_dataset(RunLengthMasks(model), loader, evaluator)
    assert repr(metrics) == unbroken[1]
    assert contents(tmp_path / "inference") == contents(unbroken[0] / "inference")


@pytest.mark.parametrize("stops", [[0], [3], [IMAGES - 1], [2, 3, 1]])
def test_one_process(data, unbroken, tmp_path, stops):
    for stop in stops:
        with pytest.raises(Interrupted):
            evaluate(tmp_path, stop)
    metrics, seen = evaluate(tmp_path)
    assert seen == IMAGES - sum(stops) and repr(metrics) == unbroken[1]
    assert contents(tmp_path / "inference") == contents(unbroken[0] / "inference")
    assert not (tmp_path / "inference/unfinished").exists()
    assert evaluate(tmp_path)[1] == IMAGES  # a finished one starts anew


def test_interrupted_while_metrics_are_computed(data, unbroken, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("tde_det.evaluation.evaluator.report_lvis", stop)
        evaluate(tmp_path)
    metrics, seen = evaluate(tmp_path)
    assert seen == 0 and repr(metrics) == unbroken[1]
    assert contents(tmp_path / "inference") == contents(unbroken[0] / "inference")


@pytest.mark.parametrize("what", ["weight", "buffer", "setting", "json"])
def test_of_another_model_starts_anew(data, tmp_path, what, caplog):
    logging.getLogger("tde_det").addHandler(caplog.handler)
    with pytest.raises(Interrupted):
        evaluate(tmp_path, 4)
    opts, change = (), None
    if what == "setting":
        opts = ("MODEL.TDE.ALPHA", "0.5")
    elif what == "json":
        os.utime(data / "mini_lvis/mini_lvis_val.json", (1, 1))
    else:
        own = "roi_heads.box_predictor.2."
        key = {"weight": "cls_score.weight", "buffer": "adjustments.tde.feature_mean"}[what]

        def change(model):
            model.state_dict()[own + key].view(-1)[0] += 1e-6

    metrics, seen = evaluate(tmp_path, opts=opts, change=change)
    logging.getLogger("tde_det").removeHandler(caplog.handler)
    assert seen == IMAGES and "Evaluating anew" in caplog.text


def test_several_test_sets(data, unbroken, tmp_path):
    """Those that are done keep their detections until all are."""
    both = ("DATASETS.TEST", "('mini_lvis_train', 'mini_lvis_val')")
    with pytest.raises(Interrupted):
        evaluate(tmp_path, 8 + 2, both)
    metrics, seen = evaluate(tmp_path, None, both)
    assert seen == IMAGES - 2 and repr(metrics["mini_lvis_val"]) == unbroken[1]
    folder = tmp_path / "inference/mini_lvis_val"
    assert contents(folder) == contents(unbroken[0] / "inference")
    assert not [*(tmp_path / "inference").rglob("unfinished")]


def test_tta(data, tmp_path):
    augmented = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)")

    def run(out, after=None):
        cfg = config(out, *augmented)
        model, seen = load_model(cfg), []

        def count(*_):
            if len(seen) == after:
                raise Interrupted
            seen.append(0)

        model.backbone.register_forward_pre_hook(count)
        return Trainer.test_with_tta(cfg, model), len(seen)

    expected, calls = run(tmp_path / "a")
    with pytest.raises(Interrupted):
        run(tmp_path / "b", calls // 2)
    metrics, left = run(tmp_path / "b")
    assert repr(metrics) == repr(expected) and 0 < left < calls
    results = [contents(tmp_path / out / "inference_TTA") for out in "ab"]
    assert results[0] == results[1]


def test_what_is_hashed(data):
    cfg = config(data / "any")
    model = load_model(cfg)
    before = model_hash(model), settings_hash(cfg, "mini_lvis_val", 7)
    assert before == (model_hash(load_model(cfg)), settings_hash(cfg, "mini_lvis_val", 7))
    others = [
        settings_hash(cfg, "mini_lvis_train", 7),
        settings_hash(cfg, "mini_lvis_val", 8),
        settings_hash(config(data, "INPUT.MAX_SIZE_TEST", "65"), "mini_lvis_val", 7),
    ]
    assert len({before[1], *others}) == 4
    moved = config(data, "MODEL.WEIGHTS", str(data / "mini_lvis/mini_lvis_val.json"))
    assert settings_hash(moved, "mini_lvis_val", 7) == before[1]  # the weights' path says nothing


def _worker(rank, folder, outs, after, how):
    torch.set_num_threads(1)
    join_gloo(rank, folder)
    comm.create_local_process_group(2)
    seen = [evaluate(out, after, how=how)[1] for out in outs]
    (folder / f"seen {rank}").write_text(json.dumps(seen))
    dist.barrier()  # gloo may abort a process whose peer has left
    dist.destroy_process_group()


def by_two(tmp_path, outs, after=None, how="raise"):
    """Evaluate into some folders with two processes; how many images each saw, of each folder."""
    folder = tmp_path / f"{time.monotonic_ns()}"
    folder.mkdir()
    mp.spawn(_worker, (folder, outs, after, how), nprocs=2)
    return list(zip(*(json.loads((folder / f"seen {rank}").read_text()) for rank in range(2))))


def test_two_processes(data, unbroken, tmp_path):
    """All by two; begun by one; the same, with fewer images left than there are processes."""
    outs = [tmp_path / "two", tmp_path / "one, then two", tmp_path / "one left"]
    for out, after in zip(outs[1:], (2, IMAGES - 1)):
        with pytest.raises(Interrupted):
            evaluate(out, after)
    assert by_two(tmp_path, outs) == [(4, 3), (3, 2), (1, 0)]
    for out in outs:
        assert contents(out / "inference") == contents(unbroken[0] / "inference")


def test_killed_processes(data, unbroken, tmp_path):
    """Begun by two that are killed by SIGKILL, continued by one."""
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        by_two(tmp_path, [tmp_path / "out"], 2, "kill")
    metrics, seen = evaluate(tmp_path / "out")
    # The process that mp.spawn ends when the other has died may have seen less than two.
    assert IMAGES - 4 <= seen <= IMAGES - 2 and repr(metrics) == unbroken[1]
    assert contents(tmp_path / "out/inference") == contents(unbroken[0] / "inference")


def stored_images(folder):
    """How many images an evaluation that runs has stored."""
    return sum(len([*_read_stream(path)[1]]) for path in folder.glob("unfinished/*.arrows"))


def test_killed_tool(data, unbroken, tmp_path):
    """``--eval-only``, killed by SIGKILL and started again, as a user would."""
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG, "--eval-only"]
    command += opts_of(tmp_path, data)
    path = os.pathsep.join([REPOSITORY, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    options = {"cwd": REPOSITORY, "env": environment, "text": True}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    deadline = time.monotonic() + 300
    # A file is there before its first image is.
    while not stored_images(tmp_path / "inference") and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    again = subprocess.run(command, capture_output=True, timeout=300, **options)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Continuing an evaluation: " in again.stdout + again.stderr
    assert contents(tmp_path / "inference") == contents(unbroken[0] / "inference")
