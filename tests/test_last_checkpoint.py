"""Which checkpoint a training is resumed from, and files that are written as a whole."""

import os

import pytest
import torch

from tde_det.atomic_file import atomic_file
from tde_det.engine.last_checkpoint import is_whole, last_checkpoint
from tde_det.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, a calibrated one, and pretrained weights."""
    names = ("model_0000001.pth", "model_0000003.pth", "model_final.pth")
    for age, name in enumerate(("weights.pth", *names, "model_calibrated.pth")):
        torch.save({"model": {"w": torch.rand(1000)}}, tmp_path / name)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    return tmp_path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def lose_the_end(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": truncate,
    "without its last byte": lose_the_end,
    "with one bit flipped": flip_a_bit,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x80junk" * 999),
    "missing": lambda path: path.unlink(),
}


def test_the_one_that_is_named(folder, caplog):
    for name in ("model_final.pth", "model_0000001.pth", "weights.pth"):
        (folder / "last_checkpoint").write_text(f"{name}\n")
        assert last_checkpoint(str(folder)) == str(folder / name)
    assert not caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_falls_back(folder, caplog, damage):
    DAMAGES[damage](folder / "model_final.pth")
    assert not is_whole(str(folder / "model_final.pth"))
    assert last_checkpoint(str(folder)) == str(folder / "model_0000003.pth")
    warning = caplog.messages[-1]
    assert "model_final.pth is damaged or missing" in warning
    assert "resumes from" in warning and "model_0000003.pth" in warning
    DAMAGES[damage](folder / "model_0000003.pth")
    assert last_checkpoint(str(folder)) == str(folder / "model_0000001.pth")


@pytest.mark.parametrize("content", [b"", b"\n", b"no.pth", b"\xff\xfe", None])
def test_last_checkpoint_itself(folder, caplog, content):
    if content is None:
        (folder / "last_checkpoint").unlink()
    else:
        (folder / "last_checkpoint").write_bytes(content)
    assert last_checkpoint(str(folder)) == str(folder / "model_final.pth")
    assert "last_checkpoint" in caplog.text or "no.pth" in caplog.text


def test_without_any(tmp_path):
    assert last_checkpoint(str(tmp_path)) == ""
    assert last_checkpoint(str(tmp_path / "none")) == ""
    torch.save({}, tmp_path / "weights.pth")  # no training has written it
    assert last_checkpoint(str(tmp_path)) == ""


def test_if_all_are_damaged(folder):
    for path in folder.glob("model_*"):
        truncate(path)
    with pytest.raises(InputError, match="model_final.pth is damaged.*no checkpoint.*is whole"):
        last_checkpoint(str(folder))
    (folder / "last_checkpoint").unlink()
    with pytest.raises(InputError, match="no file last_checkpoint.*is whole"):
        last_checkpoint(str(folder))


def test_atomic_file(tmp_path):
    path = tmp_path / "file"
    with atomic_file(str(path)) as file:
        file.write(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(KeyError), atomic_file(str(path)) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
