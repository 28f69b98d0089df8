"""A host for its own scripts, with a small program in the place of `m1` that ends as it is told."""

import os
import subprocess
import time

from tests.launch.cloud import ROOT

REMOTE = ROOT / "launch" / "remote"
COMMIT = "0" * 40


class Host:
    """A host after set-up: `endings` are the statuses with which the program ends, one attempt each."""

    def __init__(self, folder, name, bucket, endings=(), program=""):
        self.root, self.name, self.bucket = folder / name, name, bucket
        code = self.root / "code" / COMMIT
        code.mkdir(parents=True)
        (code / "launch").symlink_to(ROOT / "launch")
        (bucket / "life").mkdir(parents=True, exist_ok=True)
        m1 = self.root / f"bin-{COMMIT}" / "m1"
        m1.parent.mkdir()
        (self.root / "endings").write_text("".join(f"{status}\n" for status in endings))
        pop = 'status=$(head -n 1 "$M1_ROOT/endings"); sed -i 1d "$M1_ROOT/endings"; echo "step of $1"; exit "$status"'
        m1.write_text(f"#!/bin/bash\n{program or pop}\n")
        m1.chmod(0o755)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "M1_ROOT": str(self.root),
            "M1_HOST": name,
            "M1_NAME": "life",
            "M1_COMMIT": COMMIT,
            "M1_BUCKET": "b",
            "M1_BUCKET_DIR": str(bucket),
            "M1_CONFIG": "configs/quickstart.py",
            "M1_SET": "a=1 'b=two words'",
            "M1_PAUSE_SECONDS": "0.1",
            "M1_HEARTBEAT_SECONDS": "0.2",
        }

    def start(self, script, *words):
        command = ["bash", str(REMOTE / script), *words]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def do(self, script, *words):
        process = self.start(script, *words)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def report(self):
        file = self.bucket / "life" / "launch" / "state" / self.name
        return dict(word.split("=", 1) for word in file.read_text().split()[1:]) if file.exists() else {}

    def log(self):
        return (self.bucket / "life" / "launch" / "logs" / f"{self.name}.log").read_text()


def until(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)
