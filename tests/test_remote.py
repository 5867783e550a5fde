"""Notebooks read from and written to an S3 bucket, by plain papermill; the bucket is a stand-in."""

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("boto3", reason="boto3 is in the extra s3")
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "00_start_here.ipynb"


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as papermill asks for: an object is put, looked at, and read by ranges."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def do_PUT(self):
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body: bool = True):
        whole = self.objects.get(self.path)
        if whole is None:
            return self.answer(404)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.answer(206 if asked else 200, whole[first:], body)

    def answer(self, status: int, content: bytes = b"", body: bool = True):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(monkeypatch):
    """The objects of a bucket, path to content; boto3 finds it by its own variables."""
    handler = type("Handler", (Bucket,), {"objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    yield handler.objects
    server.shutdown()
    server.server_close()


def test_papermill_runs_a_notebook_from_a_bucket_into_a_bucket(bucket, tmp_path):
    bucket["/course/in.ipynb"] = NOTEBOOK.read_bytes()
    command = [sys.executable, "-m", "papermill", "s3://course/in.ipynb", "s3://course/out.ipynb"]
    command += ["-p", "box_size", "32", "-p", "pixel_size_A", "6.0", "-p", "run_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = nbformat.reads(bucket["/course/out.ipynb"].decode(), as_version=4)
    assert written.metadata.papermill.parameters == {
        "box_size": 32,
        "pixel_size_A": 6.0,
        "run_dir": str(tmp_path),
    }
    assert all(c.execution_count for c in written.cells if c.cell_type == "code" and c.source)
    assert (tmp_path / "results" / "00_start_here.json").exists()


def test_a_notebook_that_is_not_in_the_bucket_is_named(bucket, tmp_path):
    command = [sys.executable, "-m", "papermill", "s3://course/missing.ipynb", "out.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode and "404" in done.stderr
