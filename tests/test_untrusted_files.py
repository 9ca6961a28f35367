"""Files of strangers: what could run a program is refused in one line, and nothing has run."""

import ast
import io
import json
import os
import pathlib
import pickle
import pickletools
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from detectron2.checkpoint import DetectionCheckpointer
from tool_runs import run_tool, small_set, write_small_set

from tde_det.classification.sources import read_list
from tde_det.data.download import extract
from tde_det.engine import load_model, read_config
from tde_det.engine.download import fetch
from tde_det.errors import InputError
from tde_det.restricted_pickle import read_pickle
from tde_det.weight_files import read_weights, write_weights


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def ran(tmp_path):
    """The folder that nothing may make."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A data set, a config, and a checkpoint with another classifier than a new model has."""
    folder = write_small_set(tmp_path_factory.mktemp("untrusted") / "small")
    cfg = read_config(str(folder / "small.yaml"))
    torch.manual_seed(0)
    model = load_model(cfg)
    DetectionCheckpointer(model, str(folder)).save("model")
    return folder


def test_the_attack_works(ran):
    """Without it no test below could fail."""
    content = pickle.dumps(Evil(ran))
    pickle.loads(content)
    assert ran.exists()
    ran.rmdir()


def evil_files(folder, ran):
    """Checkpoints of every kind that hold a program."""
    evil = {"model": {"a": torch.ones(2), "b": Evil(ran)}, "__author__": "me"}
    torch.save(evil, folder / "zip.pth")
    torch.save(evil, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model_state": evil}, folder / "pycls.pyth")
    for name in ("pickle.pth", "pickle.pyth", "pickle.safetensors", "zoo.pkl"):
        (folder / name).write_bytes(pickle.dumps(evil))
    (folder / "old.pkl").write_bytes(pickle.dumps({"blobs": {"a": Evil(ran)}}, protocol=0))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "script.pth"))
    with tarfile.open(folder / "tar.pth", "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            content = pickle.dumps(Evil(ran))
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sorted(
        p for p in folder.iterdir() if p.suffix in (".pth", ".pkl", ".pyth", ".safetensors")
    )


EVIL = (
    *("legacy.pth", "old.pkl", "pickle.pth", "pickle.pyth", "pickle.safetensors", "pycls.pyth"),
    *("script.pth", "tar.pth", "zip.pth", "zoo.pkl"),
)
# Every tool that reads checkpoints, with what it needs beside MODEL.WEIGHTS.
READERS = {
    "train_net": [()],
    "train_net --eval-only": [("--eval-only",)],
    "demo": [("--input", "{small}/images", "--output", "{tmp}/out"), ("--serve", "0")],
    "visualize_activation": [("--input", "{small}/images", "--output", "{tmp}/out.png")],
    "calibrate": [("--adjust", "tau_norm tau=0.5", "--output", "{tmp}/out.pth")],
    "sweep": [("--adjust", "tde alpha=0"), ("--recommend",)],
    "export_model": [
        ("--output", "{tmp}/out.ts"),
        ("--format", "safetensors", "--output", "{tmp}/out.safetensors"),
    ],
    "convert_reference": [("--output", "{tmp}/out.pth")],
}


@pytest.mark.parametrize("name", EVIL)
def test_every_tool_refuses_a_checkpoint_that_holds_a_program(small, tmp_path, ran, name):
    assert [p.name for p in evil_files(tmp_path, ran)] == list(EVIL)
    for tool, variants in READERS.items():
        for options in variants:
            words = [word.format(small=small, tmp=tmp_path) for word in options]
            common = ("--config-file", small / "small.yaml", "MODEL.WEIGHTS", tmp_path / name)
            code, error = run_tool(*tool.split(), *words, *common)
            last = error.splitlines()[-1]
            assert code == 1 and last.startswith(f"error: {tmp_path / name}"), (tool, error)
            assert not ran.exists(), tool
            if name in ("zip.pth", "legacy.pth"):
                assert "mkdir, which could run a program" in last and "docs/training.md" in last
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("name", EVIL)
def test_resume_refuses_it(small, tmp_path, ran, name, norm):
    """With frozen norms, set-up reads the checkpoint before the trainer does."""
    evil_files(tmp_path, ran)
    (tmp_path / "last_checkpoint").write_text(name)
    opts = (
        "OUTPUT_DIR",
        tmp_path,
        "MODEL.RESNETS.NORM",
        norm,
        "--config-file",
        small / "small.yaml",
    )
    for more in ((), ("--eval-only",)):
        code, error = run_tool("train_net", "--resume", *more, *opts)
        assert code == 1 and error.splitlines()[-1].startswith(f"error: {tmp_path}"), error
        assert not ran.exists()


def test_a_training_resumes(small, tmp_path):
    """What is saved is weights and plain values alone."""
    opts = ("OUTPUT_DIR", tmp_path, "--config-file", small / "small.yaml", "DATASETS.TEST", "()")
    assert run_tool("train_net", *opts)[0] == 0
    with zipfile.ZipFile(tmp_path / "model_final.pth") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        data = archive.read(name)
    named = {word for operation, word, _ in pickletools.genops(data) if operation.name == "GLOBAL"}
    # What PyTorch admits from 2.4 on.
    storages = {f"torch {kind}Storage" for kind in ("Float", "Double", "Long")}
    assert named <= {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *storages}
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert {"model", "trainer", "iteration"} <= set(content)
    code, error = run_tool("train_net", "--resume", *opts, "SOLVER.MAX_ITER", 4)
    assert code == 0, error
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 3


@pytest.mark.parametrize("name", ["legacy.pth", "pickle.pth", "pickle.safetensors", "zip.pth"])
def test_weights_of_timm(small, tmp_path, ran, name):
    pytest.importorskip("timm")
    evil_files(tmp_path, ran)
    timm = {"BACKBONE.NAME": "build_timm_fpn_backbone", "TIMM.NAME": "resnet18"}
    opts = [word for key, value in timm.items() for word in (f"MODEL.{key}", value)]
    opts += ["MODEL.TIMM.WEIGHTS", tmp_path / name, "--config-file", small / "small.yaml"]
    for tool in ("analyze_model", "train_net"):
        code, error = run_tool(tool, *opts)
        assert code == 1 and f"error: MODEL.TIMM.WEIGHTS {tmp_path / name}" in error, error


def test_precomputed_proposals(small, tmp_path, ran):
    """Detectron2 unpickles them while it loads the data."""
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"ids": Evil(ran)}))
    key, config = "DATASETS.PROPOSAL_FILES_", ("--config-file", small / "small.yaml")
    opts = ("MODEL.LOAD_PROPOSALS", "True", *config)
    code, error = run_tool("train_net", f"{key}TRAIN", f"('{tmp_path}/p.pkl',)", *opts)
    assert code == 1 and f"{tmp_path}/p.pkl, of precomputed proposals: it is not read" in error


class TestPickles:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_what_the_model_zoo_has_is_read_as_pickle_reads_it(self, tmp_path, protocol):
        rng = np.random.default_rng(0)
        arrays = {
            f"{dtype}{shape}": (9 * rng.random(shape)).astype(dtype)
            for dtype in ("f4", "f8", "f2", ">f4", "i8", "u1", "?", "c8", "S3", "U4")
            for shape in ((), (0,), (3,), (2, 3, 4))
        }
        content = {
            "model": OrderedDict(arrays, fortran=np.asfortranarray(rng.random((3, 4)))),
            "others": [1, -(2**70), 2.5, True, None, "tëxt", b"", b"\x00\xff", (), {1}, 1j],
            "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True)],
            "frozen": frozenset([1]),
            "__author__": "me",
        }
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        content = pickle.loads(path.read_bytes())
        read = read_pickle(str(path))
        for key, expected in content["model"].items():
            actual = read["model"][key]
            assert actual.dtype == expected.dtype and np.array_equal(actual, expected), key
        assert {k: v for k, v in read.items() if k != "model"} == {
            k: v for k, v in content.items() if k != "model"
        }

    def test_python_2(self, tmp_path):
        """An array as Python 2 wrote it, whose bytes are text."""
        text = (
            b"\x80\x02}q\x00U\x01aq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
            b"q\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87"
            b"Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80\x3f"
            b"\x00\x00\xc0\xbftbs."
        )
        (tmp_path / "x.pkl").write_bytes(text)
        assert read_pickle(str(tmp_path / "x.pkl"))["a"].tolist() == [1.0, -1.5]

    @pytest.mark.parametrize(
        "content",
        [
            b"cos\nsystem\n(S'true'\ntR.",
            b"cbuiltins\neval\n(S'1'\ntR.",
            b"c__builtin__\ngetattr\n.",
            b"cnumpy\nload\n.",
            b"cnumpy.f2py.capi_maps\ngetinit\n.",
            b"ccollections\nOrderedDict.fromkeys\n.",
            b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.",
            b"cnumpy\nndarray\n(I5\ntR.",  # only _reconstruct makes arrays
            b"cnumpy\ndtype\n(S'O'\ntR.",
            b"cnumpy\ndtype\n(S'f4,O'\ntR.",
            b"Pid\n.",
            b"\x82\x01.",
            b"",
            b"hello",
        ],
    )
    def test_all_else_is_refused(self, tmp_path, content):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(InputError, match="it is not read: ") as error:
            read_pickle(str(tmp_path / "x.pkl"))
        assert "\n" not in str(error.value)

    def test_a_dtype_with_false_flags_is_a_plain_one(self, tmp_path):
        """Taken as it is, NumPy would follow the file's bytes as pointers to objects."""
        dtype = b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR(I3\nS'|'\nN(S'a'\nt}NI8\nI1\nI0\ntb"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\nt"
        (tmp_path / "x.pkl").write_bytes(array + dtype + b"I00\nS'AAAAAAAA'\ntb.")
        with pytest.raises(InputError, match="array of dtype V8"):
            read_pickle(str(tmp_path / "x.pkl"))

    def test_objects_in_an_array_are_refused(self, tmp_path):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(np.array([{}, None])))
        with pytest.raises(InputError, match="array of dtype O"):
            read_pickle(str(tmp_path / "x.pkl"))


class TestWeights:
    def scores(self, small, weights, name="pkl"):
        cfg = read_config(str(small / "small.yaml"), ["MODEL.WEIGHTS", str(weights)])
        return load_model(cfg).state_dict()

    @pytest.mark.parametrize("kind", ["zoo", "caffe2", "pycls", "safetensors"])
    def test_all_kinds_are_loaded(self, small, tmp_path, kind):
        state = torch.load(small / "model.pth", weights_only=True)["model"]
        # A name that the heuristics know from Caffe2: its res_conv1_bn_s is stem.conv1.norm.
        arrays = {key: value.numpy() for key, value in state.items()}
        path = tmp_path / f"x.{ {'pycls': 'pyth', 'safetensors': kind}.get(kind, 'pkl') }"
        if kind == "zoo":
            path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Someone"}))
        elif kind == "caffe2":
            path.write_bytes(
                pickle.dumps({"blobs": {"conv1_w": arrays[STEM] + 1, "x_momentum": 1}})
            )
        elif kind == "pycls":
            torch.save({"model_state": {**state, STEM: state[STEM] + 1}}, path)
        else:
            write_weights(str(path), state, "A: 1\n")
        if kind in ("caffe2", "pycls"):
            cfg = read_config(str(small / "small.yaml"), ["MODEL.WEIGHTS", str(path)])
            from tde_det.engine.checkpoints import Checkpointer
            from tde_det.modeling import build_detector

            model = build_detector(cfg)
            Checkpointer(model, use="train").load(str(path))
            assert torch.equal(model.state_dict()[STEM], state[STEM] + 1)
            return
        loaded = self.scores(small, path)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)

    def test_safetensors_from_tool_to_tool(self, small, tmp_path):
        config = ("--config-file", small / "small.yaml")
        paths = {k: tmp_path / f"{k}.safetensors" for k in ("exported", "calibrated")}
        weights = ("MODEL.WEIGHTS", small / "model.pth")
        command = ("export_model", "--format", "safetensors", "--output", paths["exported"])
        assert run_tool(*command, *config, *weights) == (0, "")
        weights = ("MODEL.WEIGHTS", paths["exported"])
        command = ("calibrate", "--adjust", "norcal gamma=0.5", "--output", paths["calibrated"])
        assert run_tool(*command, *config, *weights)[0] == 0
        weights = ("MODEL.WEIGHTS", paths["calibrated"])
        drawn = ("--input", small / "images", "--output", tmp_path / "drawn")
        for tool in (
            ("train_net", "--eval-only", "OUTPUT_DIR", tmp_path / "evaluated"),
            ("sweep", "--adjust", "tde alpha=0", "--output", tmp_path / "swept"),
            ("demo", *drawn),
            (
                "export_model",
                "--output",
                tmp_path / "x.ts",
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
                0.0,
            ),
        ):
            code, error = run_tool(*tool, *config, *weights)
            assert code == 0, (tool, error)
        from safetensors import safe_open

        with safe_open(paths["calibrated"], "pt") as file:
            metadata = file.metadata()
        (tmp_path / "again.yaml").write_text(metadata["config"])
        assert read_config(str(tmp_path / "again.yaml")).MODEL.ROI_BOX_HEAD.FC_DIM == 16
        assert metadata["activation"] == "softmax"
        assert read_weights(str(paths["calibrated"]))["trainer"] == {"activation": "softmax"}
        assert "calibrated.safetensors" in str(os.listdir(tmp_path))

    def test_scores_of_another_kind_are_refused_as_in_a_pth(self, small, tmp_path):
        state = torch.load(small / "model.pth", weights_only=True)["model"]
        write_weights(str(tmp_path / "x.safetensors"), state, "", "sigmoid")
        with pytest.raises(InputError, match="trained for sigmoid scores"):
            self.scores(small, tmp_path / "x.safetensors")

    def test_shared_and_strided_tensors(self, tmp_path):
        whole = torch.arange(6.0).reshape(2, 3)
        path = str(tmp_path / "x.safetensors")
        write_weights(path, {"a": whole, "b": whole, "c": whole.t(), "d": whole[0]}, "")
        read = read_weights(path)["model"]
        assert torch.equal(read["c"], whole.t()) and torch.equal(read["d"], whole[0])

    def test_format_and_name_go_together(self, small, tmp_path):
        command = ("export_model", "--config-file", small / "small.yaml", "--output")
        for words in (("x.ts", "--format", "safetensors"), ("x.safetensors",)):
            code, error = run_tool(*command, *words, "MODEL.WEIGHTS", small / "model.pth")
            assert code == 1 and "does not go with --output" in error


STEM = "backbone.bottom_up.stem.conv1.weight"
TAG = "!!python/object/apply:os.mkdir ['{}']"


class TestConfigs:
    @pytest.mark.parametrize("where", ["itself", "its base", "one of its bases", "a base's base"])
    def test_tags_are_refused(self, tmp_path, ran, where):
        tag = TAG.format(ran)
        (tmp_path / "evil.yaml").write_text(f"MODEL:\n  WEIGHTS: {tag}\n")
        (tmp_path / "good.yaml").write_text("MODEL: {}\n")
        (tmp_path / "base.yaml").write_text("_BASE_: evil.yaml\n")
        (tmp_path / "x.yaml").write_text(
            {
                "itself": (tmp_path / "evil.yaml").read_text(),
                "its base": "_BASE_: evil.yaml\n",
                "one of its bases": "_BASE_: [good.yaml, evil.yaml]\n",
                "a base's base": "_BASE_: base.yaml\n",
            }[where]
        )
        name = "x" if where == "itself" else "evil"
        message = rf"{name}.yaml, line 2: the tag !!python/object/apply:os.mkdir is not read"
        with pytest.raises(InputError, match=message) as error:
            read_config(str(tmp_path / "x.yaml"))
        assert "\n" not in str(error.value)

    def test_every_tool_refuses_them(self, small, tmp_path, ran):
        (tmp_path / "x.yaml").write_text(f"A: {TAG.format(ran)}")
        drawn = ("--dataset", "x", "--results", "x", "--output", tmp_path / "out")
        for tool, options in {
            **READERS, "analyze_model": [()], "visualize_results": [drawn]
        }.items():  # fmt: skip
            words = [str(word).format(small=small, tmp=tmp_path) for word in options[0]]
            words += ["MODEL.WEIGHTS", small / "model.pth"]
            code, error = run_tool(*tool.split(), "--config-file", tmp_path / "x.yaml", *words)
            assert code == 1 and "could run a program" in error, tool
            assert not ran.exists(), tool

    def test_a_yaml_config_names_no_program(self, tmp_path, ran):
        (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})")
        (tmp_path / "x.yaml").write_text(f"LAZY_CONFIG: {{FILE: {tmp_path}/evil.py}}")
        with pytest.raises(InputError, match=r"x.yaml sets LAZY_CONFIG.FILE, .* a program: give"):
            read_config(str(tmp_path / "x.yaml"))

    @pytest.mark.parametrize("address", ["https://x/../../x.pth", "detectron2://a/../../../x.pkl"])
    def test_addresses_do_not_lead_out_of_the_cache(self, tmp_path, address):
        with pytest.raises(InputError, match="has .. in its path"):
            fetch(address)
        (tmp_path / "x.yaml").write_text(f"_BASE_: {address}")
        if address.startswith("https"):
            with pytest.raises(InputError, match="has .. in its path"):
                read_config(str(tmp_path / "x.yaml"))


class TestFileNames:
    @pytest.mark.parametrize(
        "name",
        ["../secret.jpg", "a/../../secret.jpg", "{root}/secret.jpg", "..", "./../secret.jpg"],
    )
    def test_names_that_lead_out_of_the_image_root(self, tmp_path, name):
        content = small_set()
        content["images"][1]["file_name"] = name.format(root=tmp_path / "own")
        folder = write_small_set(tmp_path / "own", content)
        config = ("--config-file", folder / "small.yaml")
        code, error = run_tool("train_net", *config)
        assert code == 1 and "leads out of the image root" in error.splitlines()[-1]
        assert "DATASETS.ALLOW_OUTSIDE_ROOT" in error
        code, error = run_tool("train_net", *config, "DATASETS.ALLOW_OUTSIDE_ROOT", "True")
        assert code == 1 and "leads out" not in error and "cannot be used" in error
        shown = ("--results", "r", "--output", tmp_path / "out", "--image-root", folder / "images")
        code, error = run_tool("visualize_results", "--dataset", folder / "set.json", *shown)
        assert code == 1 and "leads out of the image root" in error

    def test_names_that_stay(self, tmp_path):
        content = small_set()
        content["images"][0]["file_name"] = str(tmp_path / "own/images/1.jpg")
        content["images"][1]["file_name"] = "a/../2.jpg"
        content["images"][2]["file_name"] = "link/3..jpg"
        folder = write_small_set(tmp_path / "own", content)
        (folder / "images/a").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (folder / "images/3.jpg").rename(tmp_path / "elsewhere/3..jpg")
        (folder / "images/link").symlink_to(tmp_path / "elsewhere")
        code, error = run_tool("train_net", "--config-file", folder / "small.yaml")
        assert code == 0, error

    @pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/x.jpg"])
    def test_lists_of_images(self, tmp_path, name):
        (tmp_path / "list.txt").write_text(f"a/../b.jpg 0\n{name} 1\n")
        with pytest.raises(InputError, match=f"list.txt, line 2: {name} leads out of the root"):
            read_list(str(tmp_path / "list.txt"), str(tmp_path / "root"))
        assert len(read_list(str(tmp_path / "list.txt"), "/")) == 2

    def test_pictures_stay_in_their_folder(self, tmp_path):
        content = small_set()
        for image in content["images"]:
            image["id"] = f"../{image['id']}"
        for entry in content["annotations"]:
            entry["image_id"] = f"../{entry['image_id']}"
        folder = write_small_set(tmp_path / "own", content)
        row = {"image_id": "../1", "category_id": 5, "score": 1, "bbox": [1, 2, 9, 9]}
        (tmp_path / "r.json").write_text(json.dumps([row]))
        shown = ("--results", tmp_path / "r.json", "--output", tmp_path / "a/b")
        config = ("--config-file", folder / "small.yaml", "--dataset", "own")
        assert run_tool("visualize_results", *shown, *config)[0] == 0
        pictures = {path.relative_to(tmp_path) for path in tmp_path.glob("**/*%2F*")}
        assert {str(p) for p in pictures} == {f"a/b/..%2F{i}.jpg" for i in (1, 2, 3)}


class TestArchives:
    def refuses(self, tmp_path, archive, message):
        before = {path for path in tmp_path.glob("**/*")}
        with pytest.raises(InputError, match=message):
            extract(archive, "data", tmp_path / "in/target")
        assert {path for path in tmp_path.glob("**/*")} == before

    @pytest.fixture
    def make(self, tmp_path):
        (tmp_path / "in").mkdir()

        def make(name, content=b"x", **attributes):
            member = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(member, key, value)
            with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(member, content, zipfile.ZIP_DEFLATED)
            return tmp_path / "x.zip"

        return make

    @pytest.mark.parametrize(
        "name", ["data/../../evil", "data/..\\..\\evil", "data/a/../../../evil"]
    )
    def test_names(self, make, tmp_path, name):
        self.refuses(tmp_path, make(name), "is a link or leads out of the folder")

    def test_links(self, make, tmp_path):
        archive = make("data/link", b"/etc", external_attr=0o120777 << 16)
        self.refuses(tmp_path, archive, "is a link")

    def test_bombs(self, make, tmp_path):
        self.refuses(tmp_path, make("data/zeros", bytes(20_000_000)), "too many for real data")

    def test_no_room(self, make, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and Free)
        self.refuses(tmp_path, make("data/a", b"abc"), "needs 3 bytes, 2 are free")

    def test_others_are_extracted(self, make, tmp_path):
        extract(make("data/a..b/c", b"abc"), "data", tmp_path / "in/target")
        assert (tmp_path / "in/target/a..b/c").read_bytes() == b"abc"


class Free:
    free = 2


def test_no_other_way_to_run_a_file():
    """The source reads no pickle, no yaml and no weights in another way than those above."""
    for folder in ("tde_det", "tools", "benchmarks", "datasets"):
        for path in pathlib.Path(REPOSITORY, folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name, given = ast.unparse(node.func), ast.unparse(node)
                assert name not in ("pickle.load", "pickle.loads", "yaml.load", "eval", "exec"), (
                    path
                )
                assert not name.endswith(("unsafe_load", "joblib.load")), path
                assert name != "torch.load" or "weights_only=True" in given, path
                assert "allow_pickle" not in given and "weights_only=False" not in given, path
                if name.endswith("merge_from_file") and folder in ("tde_det", "tools"):
                    assert "allow_unsafe=False" in given, path
