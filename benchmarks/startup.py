"""How long from `m1 train` to the end of its first step, with and without compiled programs of an earlier start?

The run is configs/quickstart.py on rows that are packed already; each start is a process of its own in a copy of the
run's folder that holds no checkpoint. The first start fills an empty compilation cache, the others find it filled.

    m1 corpus; m1 tokenizer train; m1 pack (each --config configs/quickstart.py)
    python benchmarks/startup.py --rows runs/quickstart --json startup.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import machine, row, show, write

TARGET = 20.0
"""Seconds that a warm start may take (issue 6)."""
M1 = [sys.executable, "-c", "import sys; from m1jax.verbs import main; sys.exit(main())"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rows", required=True, metavar="FOLDER", help="folder of a quickstart run that is packed")
    parser.add_argument("--starts", type=int, default=3, help="warm starts, of which the median is taken")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        cold, *warm = (start(Path(args.rows).absolute(), cache) for _ in range(1 + args.starts))
    rows = [
        row("start-up/warm compilation cache", statistics.median(warm), TARGET, "target", "s", less_is_better=True),
        row("start-up/empty compilation cache", cold, TARGET, "target", "s", less_is_better=True),
    ]
    print(machine(["jax"]) + f"; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def start(rows: Path, cache: str) -> float:
    """Seconds until the first step's line stands in the run's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"folder": folder, "data.rows": rows / "rows", "data.tokenizer": rows / "tokenizer"}
        command = [*M1, "train", "--config", "quickstart", *(f"--set={key}={value}" for key, value in settings.items())]
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, stdout=subprocess.DEVNULL
        )
        try:
            metrics = Path(folder) / "train" / "metrics.jsonl"
            while not (metrics.is_file() and metrics.read_text().strip()):
                if process.poll() is not None:
                    raise SystemExit("m1 train ended before its first step: its error stands above")
                time.sleep(0.05)
            taken = time.perf_counter() - begun
            assert json.loads(metrics.read_text().splitlines()[0])["step"] == 1
        finally:
            process.kill()
            process.wait()
    print(f"{taken:.1f} s", file=sys.stderr)
    return taken


if __name__ == "__main__":
    main()
