"""A stand-in cloud for one test: its folder, its faults, an operator who types m1launch, what is left at the end."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

import psutil

from tests import compiling

ROOT = pathlib.Path(__file__).parents[2]
BUCKET = "stand-in-bucket"
ENVIRONMENT = {
    "M1_NAME": "life",
    "M1_PROJECT": "stand-in",
    "M1_ZONE": "us-east5-a",
    "M1_TOPOLOGY": "v5e:2x2",
    "M1_CAPACITY": "spot",
    "M1_BUCKET": f"gs://{BUCKET}",
    "M1_CONFIG": str(ROOT / "tests" / "tiny.py"),
    "M1_SERVICE_ACCOUNT": "host@stand-in.iam.gserviceaccount.com",
    "M1_MAX_HOURS": "1",
    "M1_PYTHON": sys.executable,
    "M1_POLL_SECONDS": "0.3",
    "M1_STALE_SECONDS": "60",
    "M1_SSH_SECONDS": "120",
}


class Cloud:
    """One folder that is a cloud; see standin.py."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.state = folder / "cloud"
        (self.state / "buckets" / BUCKET).mkdir(parents=True)
        self.bucket = self.state / "buckets" / BUCKET
        self.environment = {**ENVIRONMENT, **settings}
        self.file = folder / "env"
        self.file.write_text("".join(f"{key}='{value}'\n" for key, value in self.environment.items()))
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("gcloud", "xpk", "curl", "gcsfuse"):
            program = self.bin / tool
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/launch/standin.py {tool} "$@"\n')
            program.chmod(0o755)
        self.image()

    @property
    def name(self):
        return self.environment["M1_NAME"]

    @property
    def run_folder(self):
        return self.bucket / self.name

    def image(self, **more):
        """What the hosts' image sets in the environment of a login."""
        kept = {key: os.environ[key] for key in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR") if key in os.environ}
        base = {
            **kept,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "M1_HEARTBEAT_SECONDS": "1",
            "M1_PAUSE_SECONDS": "0.2",
        }
        (self.state / "image.json").write_text(json.dumps({**base, **more}))

    @contextlib.contextmanager
    def _changed(self):
        os.environ["STANDIN"] = str(self.state)
        from tests.launch import standin

        standin.ROOT = self.state
        with standin.cloud() as state:
            yield state

    def fault(self, command, do, times=1, after=0, **more):
        """At this command (of those from number `after` on): refuse, hang, lose the answer, leave out nodes, …"""
        with self._changed() as state:
            state["faults"].append({"command": command, "do": do, "times": times, "after": after, **more})

    def unreachable(self, *hosts):
        """Hosts "node/worker" that ssh does not reach."""
        with self._changed() as state:
            state["unreachable"] = list(hosts)

    def preempt(self):
        """Takes the slices away, processes and all."""
        self._service("preempt", self.name)

    def lose_pod(self, host):
        """A node of the cluster dies with the pod on it."""
        from tests.launch import standin

        standin.kill_vm(self.state / "hosts" / f"{self.name}-cluster" / self.name / host)

    def strike(self):
        """Cloud Scheduler's time has come."""
        self._service("strike", f"{self.name}-guard")

    def _service(self, function, argument):
        program = f"from tests.launch import services; services.{function}({argument!r})"
        environment = {**os.environ, "STANDIN": str(self.state), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True)

    def operator(self, *words, **environment):
        """Starts m1launch as an operator does; a Popen in a session of its own."""
        mine = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "STANDIN": str(self.state),
            "M1_RETRY_SECONDS": "0.05",
            "M1_CALL_SECONDS": "60",
            "M1": f"{sys.executable} {ROOT}/tests/launch/plan_stub.py",
            "XLA_FLAGS": compiling.FLAGS,  # for one device
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "m1launch"), *words, "--env", str(self.file)],
            cwd=self.folder,
            env=mine,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def do(self, *words, status=0, limit=300, **environment):
        """Types one command and returns what it printed; it must end with `status`."""
        process = self.operator(*words, **environment)
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            raise AssertionError(f"m1launch {' '.join(words)} did not end:\n{out}\n{self.story()}") from None
        assert process.returncode == status, (
            f"{process.returncode} of m1launch {' '.join(words)}:\n{out}\n{self.story()}"
        )
        return out

    def calls(self, tool="gcloud", word=""):
        """Command lines that reached the cloud."""
        lines = (self.state / "calls.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [call["argv"] for call in found if call["tool"] == tool and word in " ".join(call["argv"])]

    def story(self):
        """Everything that was written anywhere, for a test that failed."""
        files = sorted([*self.state.glob("hosts/**/*.txt"), *self.state.glob("hosts/*/*/home/m1/logs/*.log")])
        texts = [f"== {file.relative_to(self.state)}\n{file.read_text(errors='replace')[-2500:]}" for file in files]
        return "\n".join(texts)

    def log(self, host="0-0"):
        """What is in the bucket of a host's log."""
        file = self.run_folder / "launch" / "logs" / f"{host}.log"
        return file.read_text() if file.exists() else ""

    def steps(self):
        """Whole checkpoints in the bucket."""
        folder = self.run_folder / "checkpoints"
        return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []

    def until(self, what, limit=300):
        """Waits until `what()` is true."""
        end = time.monotonic() + limit
        while not what():
            assert time.monotonic() < end, f"waited in vain\n{self.story()}"
            time.sleep(0.1)

    def processes(self):
        """Processes of hosts that still live."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            with contextlib.suppress(psutil.Error):
                if process.environ().get("STANDIN_VM", "").startswith(str(self.state)):
                    found.append(process.info["cmdline"])
        return found

    def assert_nothing_left(self):
        """No queued resource, cluster or job, no process of a host."""
        with self._changed() as state:
            assert (state["queued"], state["clusters"], state["jobs"]) == ({}, {}, {})
        end = time.monotonic() + 10
        while self.processes():
            assert time.monotonic() < end, self.processes()
            time.sleep(0.1)

    def close(self):
        """Ends what a failed test left."""
        from tests.launch import standin

        standin.kill_vm(self.state)
