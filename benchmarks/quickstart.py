"""Does the quickstart's training end with a better model than an earlier build's, in the same time?

Each build takes the same corpus, makes its own tokenizer and rows, and trains with its own config, in turns, on seeds
of its own. Both are scored on held-out documents that a search for settings never saw: half of what the corpus holds
out, by the hash of the text (the other half is for the search), without near-duplicates of training text (half of a
document's runs of 8 words, numbers as one word, are in documents that are trained on). Seconds are of the three verbs.

    python benchmarks/quickstart.py --corpus runs/quickstart/corpus --before ../before ../before/.venv/bin/python
    python benchmarks/quickstart.py --corpus runs/quickstart/corpus --half validation --set optimizer.name=muon

With --folder the runs stay there, and a finished one is not trained again.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from same_losses import command
from table import machine, row, show, write

HERE = Path(__file__).parents[1]
RUN, SHARE = 8, 0.5
HALVES = ("validation", "test")
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+|\d+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="a quickstart's corpus")
    parser.add_argument("--before", nargs=2, metavar=("CHECKOUT", "PYTHON"), help="an earlier m1jax beside ours")
    parser.add_argument("--half", choices=HALVES, default="test", help="held-out documents that are scored")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of our config")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the runs here")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    sides: dict[str, tuple[Path, str, list[str]]] = {"m1jax": (HERE, sys.executable, args.set)}
    if args.before:
        sides["before"] = (Path(args.before[0]).absolute(), str(Path(args.before[1]).absolute()), [])
    with tempfile.TemporaryDirectory() as scratch:
        scored = Path(scratch) / "scored"
        kept, near = split(args.corpus, scored, args.half)
        print(f"{args.half}: {kept} documents, {near} near-duplicates of training text left out", file=sys.stderr)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for seed in args.seeds:
            for side, (checkout, python, overrides) in sides.items():
                folder = (args.folder or Path(scratch)).absolute() / f"{side}-{seed}"
                found[side].append(trained(checkout, python, [*overrides, f"seed={seed}"], args.corpus, scored, folder))
                print(f"{side}, seed {seed}: {found[side][-1]}", file=sys.stderr)
    print(machine(["jax"]) + f"; load {os.getloadavg()[0]:.1f}\n")
    rows = [entry for side in list(sides)[1:] for entry in compared(found["m1jax"], found[side], args.seeds)]
    show(rows)
    if args.json:
        write(rows, args.json)


def compared(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], seeds: Sequence[int]) -> list[Any]:
    """Rows of each seed's bits per byte by domain, and of the median seconds."""
    of = [
        row(
            f"quickstart/{domain}, seed {seed}",
            mine[domain],
            other[domain],
            "m1jax before",
            "bits/byte",
            less_is_better=True,
        )
        for seed, mine, other in zip(seeds, ours, theirs, strict=True)
        for domain in mine
        if domain != "seconds"
    ]
    spent = [statistics.median(entry["seconds"] for entry in side) for side in (ours, theirs)]
    return [*of, row("quickstart/tokenizer, rows, training", *spent, "m1jax before", "s", less_is_better=True)]


def trained(
    checkout: Path, python: str, overrides: Sequence[str], corpus: Path, scored: Path, folder: Path
) -> dict[str, float]:
    """Bits per byte by domain on the documents of `scored`, and the seconds of tokenizer, rows and training."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    given = [part for override in [f"folder={folder}", *overrides] for part in ("--set", override)]
    run = ["--config", str(checkout / "configs" / "quickstart.py"), *given]

    def verb(*words: str) -> str:
        m1 = [python, *command(checkout)[1:]]
        done = subprocess.run([*m1, *words], env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"m1 {' '.join(words)} of {checkout} failed.")
        return done.stdout

    timed = folder / "seconds.json"
    if not timed.exists():
        if not folder.exists():
            shutil.copytree(corpus, folder / "corpus", copy_function=os.link)
        begun = time.monotonic()
        for words in (["tokenizer", "train"], ["pack"], ["train"]):
            verb(*words, *run)
        timed.write_text(json.dumps(time.monotonic() - begun))
    shutil.rmtree(folder / "corpus" / "heldout")
    shutil.copytree(scored, folder / "corpus" / "heldout")
    shutil.rmtree(folder / "eval", ignore_errors=True)
    found = json.loads(verb("eval", *run, "--tasks", "--json").splitlines()[-1])["bits_per_byte"]
    domains = found["model"]["domains"]
    return {name: entry["bits_per_byte"] for name, entry in domains.items()} | {
        "seconds": json.loads(timed.read_text())
    }


def split(corpus: Path, folder: Path, half: str) -> tuple[int, int]:
    """Writes one half of the held-out documents without near-duplicates; how many were written and left out."""
    tables = {file: pq.read_table(file) for file in sorted((corpus / "heldout").glob("*.parquet"))}
    wanted: dict[int, bool] = {run: False for table in tables.values() for text in texts(table) for run in runs(text)}
    documents = ds.dataset(corpus / "documents", format="parquet")
    for batch in documents.to_batches(columns=["text"]):
        for text in batch["text"].to_pylist():
            for run in runs(text):
                if run in wanted:
                    wanted[run] = True
    kept = near = 0
    folder.mkdir()
    for file, table in tables.items():
        mine = [hashlib.sha256(text.encode()).digest()[0] % 2 == HALVES.index(half) for text in texts(table)]
        copies = [
            sum(map(wanted.__getitem__, found := list(runs(text)))) >= SHARE * len(found) for text in texts(table)
        ]
        chosen = [own and not copy for own, copy in zip(mine, copies, strict=True)]
        kept, near = kept + sum(chosen), near + sum(own and copy for own, copy in zip(mine, copies, strict=True))
        if any(chosen):
            pq.write_table(table.filter(chosen), folder / file.name)
    return kept, near


def texts(table: Any) -> Iterator[str]:
    """The texts of a table of documents."""
    return iter(table["text"].to_pylist())


def runs(text: str) -> Iterator[int]:
    """A hash of every run of 8 words (of all, where there are fewer): lower case, a Han character or number a word."""
    words = ["0" if word[0].isdigit() else word for word in _WORD.findall(text.lower())]
    for start in range(max(1, len(words) - RUN + 1)):
        yield hash(tuple(words[start : start + RUN]))


if __name__ == "__main__":
    main()
