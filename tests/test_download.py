"""prepare_lvis.py against a real server that misbehaves."""

import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from tde_det.data.download import download, extract
from tde_det.errors import InputError


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.faults`` holds what goes wrong, one entry a request."""

    def do_GET(self):
        server = self.server
        name = self.path.lstrip("/")
        server.requests.append((name, self.headers.get("Range")))
        fault = server.faults.pop(0) if server.faults else None
        content = server.files.get(name)
        if content is None or fault == 404:
            return self.send_error(404)
        if fault == 503:
            return self.send_error(503)
        start, status = 0, 200
        match = re.match(r"bytes=(\d+)-$", self.headers.get("Range") or "")
        if match and server.ranges:
            start, status = int(match[1]), 206
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        body = content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            end = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(content)}")
        self.end_headers()
        if fault == "break":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.close()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.faults, httpd.requests, httpd.ranges = {}, [], [], True
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


DATA = np.random.default_rng(0).bytes(3_000_001)
MD5 = hashlib.md5(DATA).hexdigest()


def fetch(server, path, digest=MD5):
    download(f"{server.url}/a.zip", path / "a.zip", digest, wait=0.001)
    return (path / "a.zip").read_bytes()


def test_plain(server, tmp_path):
    server.files["a.zip"] = DATA
    assert fetch(server, tmp_path) == DATA
    assert fetch(server, tmp_path, hashlib.sha256(DATA).hexdigest()) == DATA
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_connection_is_continued(server, tmp_path, ranges):
    server.files["a.zip"], server.ranges = DATA, ranges
    server.faults = ["break", 503, "break", None]
    assert fetch(server, tmp_path) == DATA
    assert len(server.requests) == 4
    assert server.requests[0][1] is None
    assert server.requests[1][1].startswith("bytes=1")


def test_interrupted_program_is_continued(server, tmp_path):
    server.files["a.zip"] = DATA
    (tmp_path / "a.zip.part").write_bytes(DATA[:1000])
    assert fetch(server, tmp_path) == DATA
    assert server.requests == [("a.zip", "bytes=1000-")]
    (tmp_path / "a.zip.part").write_bytes(DATA)  # only the renaming was missing
    assert fetch(server, tmp_path) == DATA


@pytest.mark.parametrize("rest", [b"x" * 1000, DATA + b"more"])
def test_leftover_of_another_file_is_not_trusted(server, tmp_path, rest):
    server.files["a.zip"] = DATA
    (tmp_path / "a.zip.part").write_bytes(rest)
    assert fetch(server, tmp_path) == DATA


def test_wrong_checksum(server, tmp_path):
    server.files["a.zip"] = DATA[:-1] + b"?"
    with pytest.raises(InputError, match=f"expected {MD5}"):
        fetch(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_404_is_final(server, tmp_path):
    with pytest.raises(InputError, match=r"a.zip: the server answered 404.*another server"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_gives_up_but_keeps_what_it_has(server, tmp_path):
    server.files["a.zip"] = DATA
    server.faults = ["break"] + [503] * 20
    with pytest.raises(InputError, match="gave up after 6 attempts.*are kept"):
        fetch(server, tmp_path)
    server.faults = []
    assert fetch(server, tmp_path) == DATA
    assert server.requests[-1][1].startswith("bytes=1")


def test_server_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="gave up"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", MD5, wait=0.001)
    with pytest.raises(InputError, match="not an address"):
        download("no-address/a.zip", tmp_path / "a.zip", MD5)
    with pytest.raises(InputError, match="checksum 'beef' is neither"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", "beef")


def test_extract_is_all_or_nothing(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("folder/1.txt", "one")
        content.writestr("../evil.txt", "two")
    extract(archive, "folder", tmp_path / "out")
    assert (tmp_path / "out/1.txt").read_text() == "one"
    with pytest.raises(InputError, match="does not contain other"):
        extract(archive, "other", tmp_path / "out2")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be extracted"):
        extract(archive, "folder", tmp_path / "out3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name, data in members.items():
            content.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return buffer.getvalue()


def run(*args):
    command = [sys.executable, "datasets/prepare_lvis.py", *args]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_command_line(server, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    annotations = {
        "categories": [{"id": 1, "name": "a"}],
        "images": [
            {"id": 1, "height": 8, "width": 8, "coco_url": f"http://x/{split}2017/1.jpg"}
            for split in ("train",)
        ],
        "annotations": [],
    }
    text = json.dumps(annotations)
    for split in ("train", "val"):
        server.files[f"lvis_v1_{split}.json.zip"] = zipped(
            **{f"lvis_v1_{split}_dot_json": text.replace("train2017", f"{split}2017")}
        )
        server.files[f"{split}2017.zip"] = zipped(**{f"{split}2017__1_dot_jpg": picture.getvalue()})
    root = tmp_path / "datasets"

    result = run("--output", str(root), "--base-url", server.url)
    assert result.returncode == 1 and "expected 4410d837f71203af226950447ef9d422" in result.stderr
    assert "Traceback" not in result.stderr

    sums = tmp_path / "sums"
    sums.write_text(
        "".join(f"{hashlib.md5(v).hexdigest()}  {k}\n" for k, v in server.files.items())
    )
    options = ("--output", str(root), "--base-url", server.url, "--checksums", str(sums))
    server.faults = ["break"]
    result = run(*options)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (root / "lvis").iterdir()) == [
        "lvis_v1_train.json",
        "lvis_v1_val.json",
    ]
    result = run("--check", "--output", str(root))
    assert result.returncode == 1 and "1 of 1 image files cannot be used" in result.stderr
    asked = len(server.requests)
    result = run(*options, "--images")
    assert result.returncode == 0, result.stderr
    assert len(server.requests) == asked + 2, "annotations were fetched again"
    result = run("--check", "--output", str(root))
    assert result.returncode == 0 and "The data set is complete" in result.stdout
