"""Loaders of training images, and resumed trainings against unbroken ones."""

import io
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import register_lvis_instances
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from naive_samplers import assert_frequencies, long_tailed, naive_probabilities, take
from PIL import Image

from tde_det import add_tde_config
from tde_det.data import build_train_loader, register_lvis_json
from tde_det.data.objects import Objects, class_counts
from tde_det.data.samplers import warn_if_rfs_repeats_none
from tde_det.engine import Trainer
from tde_det.errors import InputError

SAMPLERS = [
    "TrainingSampler",
    "RepeatFactorTrainingSampler",
    "RandomSubsetTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
    "ClassBalancedSampler",
    "SquareRootSampler",
    "ProgressivelyBalancedSampler",
]


def content(seed, num_images=23):
    """An LVIS-format json with images of both shapes, crowds and empty images."""
    rng = np.random.default_rng(seed)
    images = [
        {
            **{"id": i + 1, "file_name": f"{seed}-{i}.png", "coco_url": f"http://x/y/{i}.png"},
            **{"width": int(rng.integers(8, 30)), "height": int(rng.integers(8, 24))},
            **{"neg_category_ids": [], "not_exhaustive_category_ids": []},
        }
        for i in range(num_images)
    ]
    box = {"bbox": [1, 1, 5, 5], "area": 25, "segmentation": [[1, 1, 6, 1, 6, 6]]}
    annotations = []
    for i, labels in enumerate(long_tailed(seed, num_images)):
        for c in labels:
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **box})
            annotations[-1].update(category_id=c + 1, iscrowd=int(rng.random() < 0.2))
    categories = [{"id": c + 1, "name": str(c)} for c in range(9)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Data sets "custom_0", "custom_1" and, of one json, "lvis_v1_x" and "plain"."""
    names = []
    for seed in range(2):
        made = content(seed)
        for image in made["images"]:
            size = (image["width"], image["height"])
            Image.new("RGB", size).save(tmp_path / image["file_name"])
        (tmp_path / f"{seed}.json").write_text(json.dumps(made))
        register_lvis_json(f"custom_{seed}", str(tmp_path / f"{seed}.json"), str(tmp_path))
        names.append(f"custom_{seed}")
    register_lvis_instances("lvis_v1_x", {}, str(tmp_path / "1.json"), "r/")
    records = DatasetCatalog.get("custom_1")
    DatasetCatalog.register("plain", lambda: [dict(record) for record in records])
    yield
    for name in [*names, "lvis_v1_x", "plain"]:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


def config(sampler, names=("custom_0",), **dataloader):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.DATASETS.TRAIN = names
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [(names[0], 2.5)]
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SOLVER.MAX_ITER = 40
    cfg.DATALOADER.update(
        {"SAMPLER_TRAIN": sampler, "NUM_WORKERS": 0, "REPEAT_THRESHOLD": 0.3},
        RANDOM_SUBSET_RATIO=0.7,
    )
    cfg.DATALOADER.update(dataloader)
    return cfg


def pass_on(record):
    return record


def ids(batches):
    return [[(record["image_id"], record["width"]) for record in batch] for batch in batches]


def batches(cfg, n, resume=None):
    """The next n batches, and the state to continue from."""
    loader = build_train_loader(cfg, pass_on)
    if resume is not None:
        loader.batch_sampler.resume(*resume)
    return ids(itertools.islice(loader, n)), loader.batch_sampler.state_dict()


def drawing(cfg):
    return build_train_loader(cfg, pass_on).batch_sampler.sampler


class TestLoader:
    @pytest.mark.parametrize("names", [("custom_0",), ("custom_0", "custom_1"), ("plain",)])
    @pytest.mark.parametrize("filter_empty", [True, False])
    def test_images_by_class(self, data, names, filter_empty):
        for name, power in (("ClassBalancedSampler", 0), ("SquareRootSampler", 0.5)):
            options = {"ASPECT_RATIO_GROUPING": False, "FILTER_EMPTY_ANNOTATIONS": filter_empty}
            loader = build_train_loader(config(name, names, **options), pass_on)
            records = sum((DatasetCatalog.get(name) for name in names), [])
            classes = [
                [a["category_id"] for a in record["annotations"] if not a.get("iscrowd")]
                for record in records
            ]
            if filter_empty:
                records = [record for record, labels in zip(records, classes) if labels]
                classes = [labels for labels in classes if labels]
            p = naive_probabilities(classes, power)
            drawn = take(loader.batch_sampler.sampler, 20_000)
            assert_frequencies(drawn, p)
            expected = [[(records[i]["image_id"], records[i]["width"])] for i in drawn[:30]]
            assert sum(ids(itertools.islice(loader, 10)), []) == sum(expected, [])

    @pytest.mark.parametrize("sampler", ["ClassBalancedSampler", "TrainingSampler"])
    def test_image_of_crowds_alone(self, data, sampler):
        kinds = [
            {a.get("iscrowd", 0) for a in record["annotations"]}
            for record in DatasetCatalog.get("custom_0")
        ]
        crowds = [{i for i, kind in enumerate(kinds) if kind == wanted} for wanted in ({1}, set())]
        options = {"FILTER_EMPTY_ANNOTATIONS": False}
        drawn = set(take(drawing(config(sampler, **options)), 3000))
        assert all(crowds)
        for images in crowds:
            assert images <= drawn if sampler == "TrainingSampler" else not images & drawn

    def test_what_this_detectron2_lacks(self, data):
        cfg = config("RandomSubsetTrainingSampler")
        del cfg.DATALOADER["RANDOM_SUBSET_RATIO"]
        with pytest.raises(
            InputError, match="SAMPLER_TRAIN is 'Random.* RepeatFactorTrai"
        ) as error:
            batches(cfg, 1)
        assert "RandomSubset" not in str(error.value).split("known are")[1]

    @pytest.mark.parametrize("names", [("custom_0",), ("plain",)])
    def test_unknown_name(self, data, names):
        with pytest.raises(InputError, match="SAMPLER_TRAIN.*'Balanced'.*SquareRootSampler"):
            build_train_loader(config("Balanced", names), pass_on)

    def test_seed(self, data):
        cfg = config("SquareRootSampler")
        runs = []
        for seed in (3, 3, 4, -1, -1):
            cfg.SEED = seed
            runs.append(batches(cfg, 9)[0])
        assert runs[0] == runs[1] and len({str(run) for run in runs}) == 4


class TestResume:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("grouping", [True, False])
    def test_after_any_iteration(self, data, sampler, grouping):
        cfg = config(sampler, ("custom_0", "custom_1"), ASPECT_RATIO_GROUPING=grouping)
        if "Weighted" in sampler:  # which Detectron2 makes for another number of images than these
            cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        expected, state = batches(cfg, 45)
        assert len({str(batch) for batch in expected}) > 30
        state = torch_round_trip(state)
        for done in (0, 1, 2, 3, 10, 29):
            assert batches(cfg, 45 - done, (done, state))[0] == expected[done:]

    @pytest.mark.parametrize("name", ["lvis_v1_x", "plain", "custom_1"])
    def test_of_any_kind_of_data_set(self, data, name):
        cfg = config("ProgressivelyBalancedSampler", (name,))
        expected, state = batches(cfg, 30)
        for done in (1, 17):
            assert batches(cfg, 30 - done, (done, state))[0] == expected[done:]

    @pytest.mark.parametrize("grouping", [True, False])
    def test_with_other_numbers_of_workers(self, data, grouping):
        cfg = config("SquareRootSampler", ASPECT_RATIO_GROUPING=grouping)
        cfg.SEED = 5
        expected, state = batches(cfg, 15)
        for workers in (1, 2, 3):
            cfg.DATALOADER.NUM_WORKERS = workers
            assert batches(cfg, 15) == (expected, state)
            assert batches(cfg, 8, (7, state))[0] == expected[7:]

    def test_again_and_again(self, data):
        cfg = config("RepeatFactorTrainingSampler", NUM_WORKERS=2)
        expected, state = batches(cfg, 12)
        for done in range(0, 12, 3):
            cfg.DATALOADER.NUM_WORKERS = 2 if done % 2 else 0
            drawn, state = batches(cfg, 3, (done, state))
            assert drawn == expected[done : done + 3]

    def test_rfs_that_repeats_nothing_warns(self, data, caplog):
        in_images = class_counts(["custom_0"], 100).images
        rarest = (in_images[in_images > 0].min() / len(DatasetCatalog.get("custom_0"))).item()
        for threshold, warns in ((rarest + 1e-6, False), (rarest - 1e-6, True)):
            caplog.clear()
            cfg = config("RepeatFactorTrainingSampler", REPEAT_THRESHOLD=threshold)
            cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
            batches(cfg, 1)
            assert ("repeats no image" in caplog.text) == warns
        warn_if_rfs_repeats_none(cfg, Objects(*np.zeros((2, 0), int), np.zeros(0, bool), 3))

    @pytest.mark.parametrize("world", [2, 3])
    def test_of_every_rank(self, data, monkeypatch, world):
        cfg = config("ClassBalancedSampler", ("custom_0", "custom_1"))
        cfg.SOLVER.IMS_PER_BATCH = 2 * world
        cfg.SEED = 1
        monkeypatch.setattr(comm, "get_world_size", lambda: world)
        monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: world)
        _, state = batches(cfg, 0)  # stored by the main process alone
        runs = []
        for rank in range(world):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            expected, rank_state = batches(cfg, 20)
            assert rank_state == state and all(len(batch) == 2 for batch in expected)
            assert batches(cfg, 9, (11, state))[0] == expected[11:]
            runs.append(str(expected))
        assert len(set(runs)) == world

    @pytest.mark.parametrize("grouping", [True, False])
    def test_batches_by_shape(self, data, grouping):
        """Against the draws of the sampler, sorted into batches one by one."""
        cfg = config("ClassBalancedSampler", ("custom_0",), ASPECT_RATIO_GROUPING=grouping)
        batch_sampler = build_train_loader(cfg, pass_on).batch_sampler
        records = [
            r
            for r in DatasetCatalog.get("custom_0")
            if any("iscrowd" not in a for a in r["annotations"])
        ]
        wide, other, expected = [], [], []
        for i in take(batch_sampler.sampler, 60):
            group = wide if grouping and records[i]["width"] > records[i]["height"] else other
            group.append(i)
            if len(group) == 3:
                expected.append(list(group))
                del group[:]
        assert len(expected) >= 18
        drawn = itertools.islice(batch_sampler, len(expected))
        assert [[draw.image for draw in batch] for batch in drawn] == expected

    def test_without_state(self, data, caplog):
        cfg = config("TrainingSampler")
        cfg.SEED = 2
        expected, state = batches(cfg, 20)
        drawn, _ = batches(cfg, 12, (8, None))
        assert "does not say how images were drawn" in caplog.text
        if state["seeds"]["_seed"] == 2:  # not in the redistribution of Detectron2
            assert drawn == expected[8:]

    @pytest.mark.parametrize(
        "opts, named",
        [
            (["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 30], "IMS_PER_BATCH was 3 and is 4"),
            (["DATALOADER.ASPECT_RATIO_GROUPING", False], "GROUPING was True and is False"),
            (["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False], "the number of images was"),
            (["SOLVER.MAX_ITER", 50], "MAX_ITER * SOLVER.IMS_PER_BATCH was 120 and is 150"),
            (["DATALOADER.SAMPLER_TRAIN", "TrainingSampler"], "was ProgressivelyBalancedSampler"),
        ],
    )
    def test_after_a_change(self, data, caplog, opts, named):
        cfg = config("ProgressivelyBalancedSampler", ("custom_0", "custom_1"))
        _, state = batches(cfg, 1)
        cfg.merge_from_list(opts)
        drawn, after = batches(cfg, 9, (7, state))
        (message,) = [r.getMessage() for r in caplog.records if "continued" in r.getMessage()]
        assert named in message and message.count(" was ") == 1
        assert after["start"] == {"iteration": 7, "draws": 21}
        if named.startswith(("IMS_PER", "GROUPING")):
            assert after["seeds"] == state["seeds"]
        # As a run that has had that many draws by itself: progress, too, goes on.
        sampler = drawing(cfg)
        sampler._seed = after["seeds"]["_seed"]
        records = DatasetCatalog.get("custom_0") + DatasetCatalog.get("custom_1")
        if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            records = [r for r in records if any("iscrowd" not in a for a in r["annotations"])]
        most = 11 * cfg.SOLVER.IMS_PER_BATCH  # some are still waiting for others of their shape
        expected = [[records[i]] for i in take(sampler, 21 + most)[21:]]
        assert not Counter(sum(drawn, [])) - Counter(sum(ids(expected), []))
        # From there on, it can be resumed.
        caplog.clear()
        assert batches(cfg, 4, (12, after))[0] == drawn[5:]
        assert not any("continued" in record.getMessage() for record in caplog.records)

    def test_another_sampler_with_settings_of_its_own(self, data, caplog):
        _, state = batches(config("TrainingSampler"), 1)
        batches(config("ProgressivelyBalancedSampler"), 2, (5, state))
        assert "SAMPLER_TRAIN was TrainingSampler and is Progressively" in caplog.text

    def test_another_number_of_processes(self, data, caplog, monkeypatch):
        cfg = config("ClassBalancedSampler")
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.ASPECT_RATIO_GROUPING, cfg.SEED = 6, False, 0
        expected, state = batches(cfg, 20)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
        runs = []
        for rank in range(2):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            runs.append(sum(batches(cfg, 13, (7, state))[0], []))
        assert "the number of processes was 1 and is 2" in caplog.text
        together = [i for pair in zip(*runs) for i in pair]
        assert together == sum(expected[7:], [])

    def test_images_of_unknown_size(self, data, caplog):
        records = [{**r, "height": 9} for r in DatasetCatalog.get("plain")]
        for record in records:
            record.pop("width")
        DatasetCatalog.register("sizeless", lambda: records)
        try:
            cfg = config("ClassBalancedSampler", ("sizeless",))
            loader = build_train_loader(cfg, pass_on)
            assert "does not say how wide" in caplog.text
            state = loader.batch_sampler.state_dict()
            expected = list(itertools.islice(loader.batch_sampler, 9))
            drawn = [draw.image for draw in sum(expected, [])]
            assert drawn == take(loader.batch_sampler.sampler, 27)
            loader.batch_sampler.resume(3, state)
            assert list(itertools.islice(loader.batch_sampler, 6)) == expected[3:]
        finally:
            DatasetCatalog.pop("sizeless")


def torch_round_trip(state):
    """As a checkpoint keeps it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


class Recorder(torch.nn.Module):
    """A model that only remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, batch):
        self.seen.append([record["image_id"] for record in batch])
        return {"loss": self.weight.sum()}


class RecordingTrainer(Trainer):
    @classmethod
    def build_model(cls, cfg):
        return Recorder()


class StockTrainer(DefaultTrainer):
    """Without our state in its checkpoints."""

    build_model = RecordingTrainer.build_model
    build_train_loader = Trainer.build_train_loader


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "ProgressivelyBalancedSampler"])
def test_training(data, tmp_path, sampler, workers):
    cfg = config(sampler, ("custom_0", "custom_1"), NUM_WORKERS=workers)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.INPUT.MIN_SIZE_TRAIN = (8,)
    cfg.SOLVER.MAX_ITER = 12
    cfg.SOLVER.CHECKPOINT_PERIOD = 3

    def train(folder, resume, to=12, trainer=RecordingTrainer):
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        trainer = trainer(cfg)
        trainer.resume_or_load(resume)
        trainer.max_iter = to
        trainer.train()
        return trainer.model.seen

    np.random.seed(0)  # for the two that must start alike; what is resumed knows its seed
    expected = train("unbroken", False)
    np.random.seed(0)
    broken = train("broken", False, to=3)
    broken += train("broken", True, to=9)
    broken += train("broken", True)
    assert broken == expected and len(expected) == 12

    cfg.SEED = 1
    np.random.seed(0)
    train("old", False, to=6, trainer=StockTrainer)
    assert len(train("old", True)) == 6
