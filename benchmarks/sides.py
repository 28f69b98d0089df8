"""Sides of a benchmark that take turns: processes that answer each line with a line of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def start(python: str, script: str, cell: dict[str, Any]) -> Any:
    """A side's process, `python script --side CELL`, with as many threads as there are cores and large pages."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(os.cpu_count()), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": "4", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }  # fmt: skip
    command = [python, script, "--side", json.dumps(cell)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve(ready: Callable[[], Callable[[str], Any]]) -> None:
    """What a side does: makes itself ready, says so, and answers each line with what the function makes of it."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not come between
    turn = ready()

    def say(what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    say("ready")
    for line in iter(sys.stdin.readline, ""):
        say(turn(line.strip()))


def ask(process: Any, word: str = "") -> Any:
    """A line of JSON from a side, after a word to it; ends the benchmark where the side has ended."""
    if word:
        process.stdin.write(word + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a side ended: see its error above")
    return json.loads(line)
