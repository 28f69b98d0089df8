"""SIGKILL at random moments, during saving too; and the notice of a machine that will go."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from m1jax.errors import AGAIN
from m1jax.train.hooks.journal import read_journal

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_killed_twenty_times_it_comes_to_the_same_bits(tmp_path):
    command = [sys.executable, "benchmarks/kills.py", "--folder", tmp_path, "--kills", "20"]
    subprocess.run([*command, "--json", tmp_path / "kills.json"], cwd=ROOT, env=ENVIRONMENT, check=True)
    record = json.loads((tmp_path / "kills.json").read_text())
    assert record["kills"] == 20
    assert record["while_saving"] > 0
    assert record["same_bits"]


class Metadata(http.server.BaseHTTPRequestHandler):
    """Compute Engine's metadata server, as an instance about to be moved sees it once `notice` is set."""

    notice = threading.Event()

    def do_GET(self):
        assert self.headers["Metadata-Flavor"] == "Google"
        going = self.path == "/computeMetadata/v1/instance/maintenance-event" and self.notice.is_set()
        body = b"TERMINATE_ON_HOST_MAINTENANCE" if going else b"NONE"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing: the tests' output is for tests."""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "notice of maintenance"])
def test_a_machine_that_will_go_is_left_saved(tmp_path, how):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**ENVIRONMENT, "GCE_METADATA_HOST": f"127.0.0.1:{server.server_port}"}
    command = [sys.executable, "-m", "tests.train.toy_run", str(tmp_path), "0.5", "20", "20"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while len(read_journal(tmp_path / "train" / "metrics.jsonl")) < 4:
            assert process.poll() is None
            time.sleep(0.05)
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            Metadata.notice.set()
        _, said = process.communicate(timeout=120)
    finally:
        Metadata.notice.clear()
        server.shutdown()
    assert process.returncode == AGAIN, said
    step = int(said.split("SIGTERM after step ")[1].split()[0])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert len(read_journal(tmp_path / "train" / "metrics.jsonl")) == step < 60
