"""One table of every ratio: runs the benchmarks that need no accelerator, and writes benchmarks/README.md.

    python benchmarks/all.py QUICKSTART=runs/quickstart TRL=trl/bin/python VLLM=vllm/bin/python    # hours, idle
    python benchmarks/all.py QUICKSTART=runs/quickstart --only startup    # one again; the others keep their figures
    python benchmarks/all.py --take sft=sft.json    # the figures that `sft.py --json sft.json` wrote here today
    python benchmarks/all.py --table                # the table from the figures that are there

A benchmark that needs what is not given is left out: QUICKSTART, the folder of a finished quickstart; TRL and VLLM, the
Python of an environment with that peer; BEFORE, an earlier checkout. The figures of each are in
benchmarks/results/NAME.json, with the command, machine, versions and day of their run.
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
    "quickstart": ("quickstart.py", "--corpus", "QUICKSTART/corpus", "--before", "BEFORE", "BEFORE/.venv/bin/python"),
    "muon": ("muon.py", "--quickstart", "QUICKSTART"),
    "sft": ("sft.py", "--peer-python", "TRL"),
    "sft_smollm2": ("sft_smollm2.py", "--quickstart", "QUICKSTART", "--folder", "QUICKSTART/smollm2"),
    "alignment": ("alignment.py", "--quickstart", "QUICKSTART", "--folder", "QUICKSTART/alignment"),
    "decode": ("decode.py",),
    "decode_smollm2": ("decode_smollm2.py", "--vllm", "VLLM"),
    "rollouts": ("rollouts.py", "--vllm", "VLLM"),
    "serving": ("serving.py", "--vllm", "VLLM"),
    "installation": ("installation.py",),
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
"""Arguments of each benchmark, with the names of what is given."""
GIVEN = ("QUICKSTART", "TRL", "VLLM", "BEFORE")
PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "mlx-lm", "grain", "tokenizers", "sentencepiece", "libtpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("given", nargs="*", metavar="NAME=PATH", help=f"{', '.join(GIVEN)}: see above")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--take", nargs="+", default=[], metavar="NAME=FILE", help="rows that a run wrote just now")
    parser.add_argument("--table", action="store_true", help="write the table only")
    args = parser.parse_args()
    given, failed = dict(part.split("=", 1) for part in args.given), []
    for name, _, file in (part.partition("=") for part in args.take):
        keep(name, json.loads(Path(file).read_text(encoding="utf-8")))
    for name in [] if args.table or args.take else args.only:
        missing = [word for word in GIVEN if word not in given and any(word in part for part in COMMANDS[name])]
        if missing:
            print(f"{name} is left out: it needs {' and '.join(missing)}", file=sys.stderr)
        elif not measured(name, given):
            failed.append(name)
    TABLE.write_text(page([result for name in COMMANDS if (result := load(name))]), encoding="utf-8")
    for name in failed:
        print(f"{name} failed: its figures are those of an earlier run, if any", file=sys.stderr)
    return 1 if failed else 0


def measured(name: str, given: Mapping[str, str]) -> bool:
    """Runs a benchmark and keeps its figures; False where it ends with an error, and then keeps nothing."""
    arguments = list(COMMANDS[name])
    for word, path in given.items():
        arguments = [part.replace(word, path) for part in arguments]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / arguments[0]), *arguments[1:], "--json", str(rows)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        print(f"$ {shlex.join(command)}", flush=True)
        if subprocess.run(command, env=environment, check=False).returncode:
            return False
        keep(name, json.loads(rows.read_text(encoding="utf-8")))
    return True


def keep(name: str, rows: Any) -> None:
    """Writes the figures of a benchmark that was run here today."""
    found = {
        "command": shlex.join(["python", f"benchmarks/{COMMANDS[name][0]}", *COMMANDS[name][1:]]),
        "machine": machine(PACKAGES),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def load(name: str) -> Mapping[str, Any] | None:
    """The kept figures of a benchmark; None where it was never run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The page: a table for each command."""
    parts = [
        "# Benchmarks",
        "One file for each question; each prints what it measures and how. A ratio above 1 means that m1jax is ahead "
        "of the peer in the same run, below 1 that it is behind. `python benchmarks/all.py` measures them again and "
        "writes this page (its head says what it needs); those for GPUs (`attention_gpu.py`) have not run yet.",
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
