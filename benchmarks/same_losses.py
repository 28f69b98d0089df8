"""Do two checkouts train alike? The quickstart's first float32 losses of both, compared bit by bit.

    git worktree add ../before v0.1.0
    python benchmarks/same_losses.py ../before . --json FILE

Each checkout makes its own corpus, tokenizer and rows from the same packages of text, and trains with the quickstart's
config until `--steps` losses are written. Both run with this Python and this machine's cores, one after the other. Exit
status 1 where a loss differs or the rows of a step do.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

WAIT_SECONDS = 1800.0


def command(checkout: Path) -> list[str]:
    """The `m1` of a checkout, whatever is installed."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["m1"].partition(":")
    return [sys.executable, "-P", "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]


def losses(checkout: Path, folder: Path, steps: int) -> list[tuple[float, list[int]]]:
    """(loss, rows) of the first steps of a checkout's quickstart, trained in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.absolute())}
    run = ["--config", str(checkout / "configs" / "quickstart.py"), "--set", f"folder={folder}"]
    for verb in (["corpus"], ["tokenizer", "train"], ["pack"]):
        subprocess.run([*command(checkout), *verb, *run], check=True, env=environment, stdout=subprocess.DEVNULL)
    journal = folder / "train" / "metrics.jsonl"
    process = subprocess.Popen(
        [*command(checkout), "train", *run], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        begun = time.monotonic()
        while len(found := read(journal)) < steps:
            if process.poll() not in (None, 0) or time.monotonic() - begun > WAIT_SECONDS:
                raise SystemExit(f"{checkout}: training ended or stalled after {len(found)} of {steps} steps.")
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    return found[:steps]


def read(journal: Path) -> list[tuple[float, list[int]]]:
    """(loss, rows) of the journal's whole lines."""
    if not journal.is_file():
        return []
    lines = [line for line in journal.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [(entry["loss"], entry["rows"]) for entry in map(json.loads, lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="folder for both runs, kept; a finished part of it is used again")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        before, after = (losses(c, root.absolute() / f"run-{i}", args.steps) for i, c in enumerate(args.checkouts))
    different = [i + 1 for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    equal = args.steps - len(different)
    print(f"{equal} of {args.steps} losses are equal bit by bit, from {before[0][0]!r} to {before[-1][0]!r}.")
    if different:
        i = different[0] - 1
        print(f"The first that differs is of step {different[0]}: {before[i]} and {after[i]}.")
    if args.json:
        row = {"name": "equal losses", "ours": equal, "peer": args.steps, "peer_name": str(args.checkouts[0])}
        args.json.write_text(json.dumps([{**row, "unit": "steps", "ratio": equal / args.steps}], indent=1) + "\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
