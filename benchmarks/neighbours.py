"""Do a request's tokens depend on what else is served at the same time, and what does it cost that they never do?

SmolLM2-135M-Instruct's weights (tests/convert/smollm2.py) in the engine of `m1 serve`, in this process. Random prompts
of 32 to 512 tokens are answered greedily with 64 tokens each, first one after the other, then all at once in 16 slots,
in float32 and in bfloat16, as usual and with `--batch-invariant`. What counts are the answers that are the same ids
both times, and the tokens a second of the crowd. Programs are compiled in a round before.

    python benchmarks/neighbours.py --json neighbours.json
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from smollm2_models import write_models
from table import Row, machine, row, show, write

NEW, SLOTS, CONTEXT = 64, 16, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--requests", type=int, default=64)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(100, 30_000, rng.integers(32, 513)).tolist() for _ in range(args.requests)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(folder)
        for dtype in args.dtypes:
            usual, invariant = (measured(folder / "ours", dtype, mode, prompts) for mode in (False, True))
            for name, (same, _) in (("as usual", usual), ("--batch-invariant", invariant)):
                what = f"the same answer in a crowd, {name}/{dtype}, {args.requests} requests"
                rows.append(row(what, same, args.requests, "alone", "answers"))
            what = f"tokens of a crowd, --batch-invariant/{dtype}, {args.requests} requests"
            rows.append(row(what, invariant[1], usual[1], "as usual", "token/s"))
    print(f"{machine(['jax'])}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def measured(folder: Path, dtype: str, invariant: bool, prompts: list[list[int]]) -> tuple[int, float]:
    """Answers that are the same in a crowd, and the crowd's tokens a second."""
    import m1jax
    from m1jax.generate.requests import Request
    from m1jax.generate.room import Limits

    model, _ = m1jax.load(folder, dtype=dtype)
    limits = Limits(max_batch=SLOTS, cache_bytes=2 << 30, context=CONTEXT, reuse=False, batch_invariant=invariant)
    engine = model.online(limits)

    def answers(crowd: list[list[int]]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in crowd]
        for prompt, new in zip(crowd, found, strict=True):
            engine.submit(Request(prompt, NEW), lambda progress, new=new: new.extend(progress.tokens))
        while engine.step():
            pass
        return found

    answers(prompts)
    alone = [answers([prompt])[0] for prompt in prompts]
    begun = time.perf_counter()
    crowd = answers(prompts)
    seconds = time.perf_counter() - begun
    assert all(len(one) == NEW for one in crowd)
    return sum(one == other for one, other in zip(alone, crowd, strict=True)), len(prompts) * NEW / seconds


if __name__ == "__main__":
    main()
