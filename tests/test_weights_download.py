"""MODEL.WEIGHTS by an address: downloaded into the cache, or one line that says what to do."""

import functools
import http.server
import socket
import threading

import pytest
import torch

from tde_det.engine import checks, download, read_config
from tde_det.engine.checkpoints import Checkpointer, readable_checkpoint
from tde_det.errors import InputError


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; /short ends too early, /silent never answers, /empty has nothing."""

    def do_GET(self):
        if self.path == "/silent":
            self.server.released.wait(20)
        elif self.path in ("/short", "/empty"):
            self.send_response(200)
            self.send_header("Content-Length", "1000" if self.path == "/short" else "0")
            self.end_headers()
            self.wfile.write(b"" if self.path == "/empty" else b"x" * 10)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FVCORE_CACHE", str(folder))
    return folder


@pytest.fixture
def server(tmp_path, cache):
    """The address of a server of ``tmp_path / "www"``."""
    (tmp_path / "www").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "www"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def message_of(address):
    with pytest.raises(InputError) as caught:
        download.fetch(address)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"MODEL.WEIGHTS {address} cannot be down")
    assert "FVCORE_CACHE" in message and "set MODEL.WEIGHTS to a local file" in message
    return message


@pytest.mark.parametrize(
    "path, reason",
    [
        ("/no/model.pth", "404"),
        ("/short", "retrieval incomplete"),
        ("/empty", "empty file"),
        ("/silent", "timed out"),
    ],
)
def test_what_a_server_does_wrong(server, cache, monkeypatch, path, reason):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    message = message_of(server + path)
    assert reason in message and f"put a copy at {cache}{path} " in message
    assert not (cache / path[1:]).exists()
    assert socket.getdefaulttimeout() is None


def test_no_server(cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a/model.pth"
        assert "refused" in message_of(address)
    assert f"put a copy at {cache}/a/model.pth " in message_of("http://no-such.invalid/a/model.pth")
    assert "s3://" in message_of("s3://bucket/model.pth")


def test_detectron2_addresses(cache, monkeypatch):
    """The message names the very file that a later start finds."""
    address = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: refused
    message = message_of(address)
    path = cache / "detectron2/ImageNetPretrained/MSRA/R-101.pkl"
    assert f"put a copy at {path} " in message
    path.write_bytes(b"weights")
    download.fetch(address)


def test_the_config_is_checked(server, tmp_path):
    for use in ("start", "weights"):
        check, *_ = checks.CHECKS[use]
        cfg = read_config("", ["MODEL.WEIGHTS", f"{server}/model.pth"])
        with pytest.raises(InputError, match="404"):
            check(cfg)
    torch.save({"model": {}}, tmp_path / "www/model.pth")
    check(cfg)


def test_loading(server, tmp_path, cache):
    """What training resumes with is not known before, so that loading checks again."""
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    address = f"{server}/model.pth"
    with pytest.raises(InputError, match="404"), readable_checkpoint(address):
        Checkpointer(other).load(address)
    torch.save({"model": model.state_dict()}, tmp_path / "www/model.pth")
    Checkpointer(other).load(f"{address}?matching_heuristics=True")
    assert torch.equal(other.weight, model.weight)
    (cache / "model.pth").write_bytes(b"<html>Log in to this network</html>")
    message = f"cached as {cache}/model.pth, is no checkpoint that"
    with pytest.raises(InputError, match=message), readable_checkpoint(address):
        Checkpointer(other).load(address)
