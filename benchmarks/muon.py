"""Does Muon end with a better model than AdamW on the same rows, each at the learning rate that suits it?

The run is the quickstart's with a share of its tokens, on rows that are packed already. Each optimiser is trained at
every learning rate of its grid (first seed) and judged on the validation half of the held-out documents; with the best
rate it is trained on all seeds and scored on the test half, which the choice never saw (see quickstart.py).

    python benchmarks/muon.py --quickstart runs/quickstart --json muon.json
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from quickstart import HALVES, split
from same_losses import command
from table import machine, row, show, write

HERE = Path(__file__).parents[1]
GRIDS = {"muon": (1.5e-3, 3e-3, 6e-3), "adamw": (1e-3, 2e-3, 4e-3)}
JUDGED = "medical"
END = 1 / 60
"""Of the rate at the end of the last stage to that of the others, as in the config."""


class Training(NamedTuple):
    """One run."""

    optimizer: str
    rate: float
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, required=True, metavar="FOLDER", help="of a finished quickstart")
    parser.add_argument("--share", type=float, default=1.0, help="of the config's tokens (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, source = Path(scratch), args.quickstart.absolute()
        for half in HALVES:
            split(source / "corpus", folder / half, half)
        bits: dict[tuple[Training, str], dict[str, float]] = {}
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:

            def take(wanted: list[Training]) -> None:
                for one, found in zip(
                    wanted, pool.map(lambda w: run(w, source, folder, args.share), wanted), strict=True
                ):
                    for half, domains in found.items():
                        bits[one, half] = domains
                    print(f"{one}: {found}", file=sys.stderr, flush=True)

            take([Training(name, rate, args.seeds[0]) for name, grid in GRIDS.items() for rate in grid])
            best = {
                name: min(grid, key=lambda rate: bits[Training(name, rate, args.seeds[0]), "validation"][JUDGED])
                for name, grid in GRIDS.items()
            }
            take([Training(name, best[name], seed) for seed in args.seeds[1:] for name in GRIDS])
    rows = []
    for domain in ("medical", "general"):
        sides = {
            name: [bits[Training(name, rate, seed), "test"][domain] for seed in args.seeds]
            for name, rate in best.items()
        }
        for place, seed in enumerate(args.seeds):
            values = sides["muon"][place], sides["adamw"][place]
            rows.append(row(f"{domain}, seed {seed}", *values, "AdamW", "bits/byte", less_is_better=True))
        means = (statistics.mean(sides[name]) for name in ("muon", "adamw"))
        rows.append(
            row(f"{domain}, mean of {len(args.seeds)} seeds", *means, "AdamW", "bits/byte", less_is_better=True)
        )
    print(machine(["jax"]) + f"; {args.share:.0%} of the quickstart's tokens\n")
    print("| optimiser | learning rate | medical, validation half | chosen |\n|---|---|---|---|")
    for name, grid in GRIDS.items():
        for rate in grid:
            found = bits[Training(name, rate, args.seeds[0]), "validation"][JUDGED]
            print(f"| {name} | {rate:g} | {found:.3f} | {'yes' if rate == best[name] else ''} |")
    print()
    show(rows)
    if args.json:
        write(rows, args.json)


def run(wanted: Training, source: Path, halves: Path, share: float) -> dict[str, dict[str, float]]:
    """Bits per byte by half and domain."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}
    sys.path.insert(0, str(HERE))
    from m1jax.config import file as config_file

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = folder / "corpus"
        shutil.copytree(source / "corpus", corpus, copy_function=os.link)
        settings: dict[str, Any] = {
            "folder": folder / "run", "data.corpus": corpus, "data.rows": source / "rows",
            "data.tokenizer": source / "tokenizer", "optimizer.name": wanted.optimizer, "seed": wanted.seed,
            "train.validate_every": 0,
        }  # fmt: skip
        stages = config_file.load("quickstart", []).stages
        for i, stage in enumerate(stages):
            settings[f"stages.{i}.tokens"] = round(stage.tokens * share)
            settings[f"stages.{i}.learning_rate.start"] = wanted.rate
            settings[f"stages.{i}.learning_rate.end"] = wanted.rate * (END if i == len(stages) - 1 else 1)
        given = ["--config", "quickstart", *(f"--set={key}={value}" for key, value in settings.items())]

        def verb(*words: str) -> str:
            m1 = [sys.executable, *command(HERE)[1:]]
            done = subprocess.run([*m1, *words, *given], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{wanted}: m1 {' '.join(words)} failed: {done.stderr[-500:]}")
            return done.stdout

        verb("train")
        found = {}
        for half in HALVES:
            shutil.rmtree(corpus / "heldout")
            shutil.copytree(halves / half, corpus / "heldout")
            shutil.rmtree(folder / "run" / "eval", ignore_errors=True)
            data = json.loads(verb("eval", "--tasks", "--json").splitlines()[-1])
            domains = data["bits_per_byte"]["model"]["domains"]
            found[half] = {name: entry["bits_per_byte"] for name, entry in domains.items()}
        return found


if __name__ == "__main__":
    main()
