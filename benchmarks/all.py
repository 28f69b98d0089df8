"""One table of every ratio: runs the benchmarks that need no accelerator, and writes benchmarks/README.md.

    python benchmarks/all.py --quickstart runs/quickstart                    # hours, on an idle machine
    python benchmarks/all.py --quickstart runs/quickstart --only startup     # one again; the others keep their figures
    python benchmarks/all.py --table                                         # the table from the figures that are there

The figures of each are in benchmarks/results/NAME.json, with the command, machine, versions and day of their run.
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import machine

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results", HERE / "README.md"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train_step": ("train_step.py",),
    "decode": ("decode.py",),
    "startup": ("startup.py", "--rows", "QUICKSTART"),
    "packing": ("packing.py", "--corpus", "QUICKSTART/corpus", "--tokenizer", "QUICKSTART/tokenizer"),
    "tokenizer": ("tokenizer.py", "--corpus", "QUICKSTART/corpus"),
    "loader": ("loader.py",),
    "conversion": ("conversion.py",),
    "checkpoint_stall": ("checkpoint_stall.py",),
    "parity": ("parity.py",),
    "attention_tpu": ("attention_tpu.py",),
    "decode_tpu": ("decode_tpu.py",),
}
"""Arguments of each benchmark; QUICKSTART is the folder of a run of `m1 quickstart`, whose text and rows they take."""
PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "mlx-lm", "grain", "tokenizers", "sentencepiece", "libtpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, metavar="FOLDER", help="folder of a finished `m1 quickstart`")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="write the table only")
    args = parser.parse_args()
    failed = []
    if not args.table:
        if args.quickstart is None:
            parser.error("--quickstart FOLDER is needed: the folder of a finished `m1 quickstart`")
        failed = [name for name in args.only if not measured(name, args.quickstart)]
    TABLE.write_text(page([result for name in COMMANDS if (result := load(name))]), encoding="utf-8")
    for name in failed:
        print(f"{name} failed: its figures are those of an earlier run, if any", file=sys.stderr)
    return 1 if failed else 0


def measured(name: str, quickstart: Path) -> bool:
    """Runs a benchmark and keeps its figures; False where it ends with an error, and then keeps nothing."""
    arguments = [part.replace("QUICKSTART", str(quickstart)) for part in COMMANDS[name]]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / arguments[0]), *arguments[1:], "--json", str(rows)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        print(f"$ {shlex.join(command)}", flush=True)
        if subprocess.run(command, env=environment, check=False).returncode:
            return False
        found = {
            "command": shlex.join(["python", f"benchmarks/{COMMANDS[name][0]}", *COMMANDS[name][1:]]),
            "machine": machine(PACKAGES),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rows": json.loads(rows.read_text(encoding="utf-8")),
        }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    return True


def load(name: str) -> Mapping[str, Any] | None:
    """The kept figures of a benchmark; None where it was never run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The page: a table for each command."""
    parts = [
        "# Benchmarks",
        "One file for each question; each prints what it measures and how. A ratio above 1 means that m1jax is ahead "
        "of the peer in the same run. `python benchmarks/all.py --quickstart runs/quickstart` measures all of these "
        "again and writes this page; those for GPUs (`attention_gpu.py`) have not run yet.",
    ]
    for result in results:
        rows = [
            f"| {row['name']} | {row['ours']:.4g} | {row['peer']:.4g} | {row['peer_name']} | {row['unit']} "
            f"| {row['ratio']:.2f} |"
            for row in result["rows"]
        ]
        heading = ["| what | ours | peer | peer's name | unit | ratio |", "|---|---|---|---|---|---|"]
        about = f"`{result['command']}`, {result['date']}, {result['machine']}:"
        parts += [about, "\n".join([*heading, *rows])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
