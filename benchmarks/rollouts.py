"""How fast are rollouts on this machine's CPU: continuations of several samples a prompt, which end at different times?

SmolLM2-135M-Instruct's weights (tests/convert/smollm2.py) on every side; 8 prompts of 192 tokens with 4 samples each,
of 16 to 256 new tokens (seeded, the same for all sides), temperature 1. Each program is a process with as many threads
as there are cores; turns alternate, the first of each is left out, medians are taken. What counts are useful tokens:
those that a continuation was asked for. transformers generates all to the longest.

    python benchmarks/rollouts.py --vllm vllm_venv/bin/python --json rollouts.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sides import ask, serve, start
from smollm2_models import NAMES, open_transformers, write_models
from table import machine, row, show, write

PROMPTS, SAMPLES, LENGTH, LIMITS = 8, 4, 192, (16, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM's CPU build")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--slots", type=int, default=16, help="of ours")
    parser.add_argument("--turns", type=int, default=3, help="of each side; the first is left out")
    parser.add_argument("--peers", nargs="*", default=["vllm", "torch"], choices=["vllm", "torch"])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(json.loads(args.side))
        return
    pythons = {"m1jax": sys.executable, "vllm": args.vllm, "torch": sys.executable}
    sides = {side: python for side, python in pythons.items() if python and side in ("m1jax", *args.peers)}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(folder)
        for dtype in args.dtypes:
            cell = {"folder": str(folder), "dtype": dtype, "slots": args.slots}
            speeds = measured(sides, cell, args.turns)
            name = f"rollouts/{dtype}, {PROMPTS} prompts x {SAMPLES}, {asked().sum()} tokens"
            rows += [row(name, speeds["m1jax"], speeds[side], NAMES[side], "token/s") for side in list(sides)[1:]]
    print(f"{machine(['jax', 'torch', 'transformers'])}; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def asked() -> np.ndarray:
    """New tokens of each continuation, prompt by prompt."""
    low, high = LIMITS
    return np.random.default_rng(0).integers(low, high + 1, PROMPTS * SAMPLES)


def prompts(turn: int) -> list[list[int]]:
    """Other prompts in every turn, so that nothing of an earlier one is kept."""
    return np.random.default_rng([1, turn]).integers(100, 30_000, (PROMPTS, LENGTH)).tolist()


def measured(sides: dict[str, str], cell: dict[str, Any], turns: int) -> dict[str, float]:
    """Useful tokens a second of each side."""
    processes: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    try:
        for side, python in sides.items():
            processes[side] = start(python, __file__, {**cell, "side": side})
            ask(processes[side])
        for turn in range(turns):
            for side, process in processes.items():
                seconds[side].append(ask(process, str(turn)))
                print(f"{cell['dtype']} {side}: {seconds[side][-1]:.2f} s", file=sys.stderr)
    finally:
        for process in processes.values():
            process.kill()
    return {side: asked().sum() / statistics.median(taken[1:]) for side, taken in seconds.items()}


def side(cell: dict[str, Any]) -> None:
    """A side: answers the number of a turn with its seconds."""
    opened = {"m1jax": open_m1jax, "torch": open_torch, "vllm": open_vllm}[cell["side"]]

    def ready() -> Callable[[str], float]:
        run = opened(cell)

        def turn(word: str) -> float:
            given = prompts(int(word))
            begun = time.perf_counter()
            counts = run(given, int(word))
            seconds = time.perf_counter() - begun
            assert all(own >= wanted for own, wanted in zip(counts, asked().tolist(), strict=True)), counts
            return seconds

        return turn

    serve(ready)


def open_m1jax(cell: dict[str, Any]) -> Any:
    """Ours: continuous batching."""
    import m1jax
    from m1jax.generate import Sampling

    model, _ = m1jax.load(Path(cell["folder"]) / "ours", dtype=cell["dtype"])
    batcher = model.batcher(cell["slots"])

    def run(given: list[list[int]], turn: int) -> list[int]:
        sampling = Sampling(temperature=1.0)
        found = batcher.run(given, SAMPLES, max_new_tokens=asked().tolist(), sampling=sampling, seed=turn)
        print(batcher.timing, file=sys.stderr)
        return [len(one.tokens) for some in found for one in some]

    return run


def open_torch(cell: dict[str, Any]) -> Any:
    """The generate of transformers: one batch, all to the longest."""
    import torch

    model = open_transformers(cell)

    @torch.inference_mode()
    def run(given: list[list[int]], turn: int) -> list[int]:
        torch.manual_seed(turn)
        longest = int(asked().max())
        out = model.generate(
            torch.tensor(given), do_sample=True, temperature=1.0, top_k=0, num_return_sequences=SAMPLES,
            max_new_tokens=longest, min_new_tokens=longest, pad_token_id=2,
        )  # fmt: skip
        return [out.shape[1] - LENGTH] * len(out)

    return run


def open_vllm(cell: dict[str, Any]) -> Any:
    """The peer vLLM with its prefix cache, one request a continuation, since each has its own number of tokens."""
    from vllm import LLM, SamplingParams

    model = LLM(
        str(Path(cell["folder"]) / "theirs"), dtype=cell["dtype"], max_model_len=LENGTH + LIMITS[1] + 1,
        max_num_seqs=PROMPTS * SAMPLES, enable_prefix_caching=True,
    )  # fmt: skip

    def run(given: list[list[int]], turn: int) -> list[int]:
        requests: Any = [{"prompt_token_ids": ids} for ids in given for _ in range(SAMPLES)]
        settings = [
            SamplingParams(temperature=1.0, max_tokens=count, ignore_eos=True, detokenize=False, seed=100 * turn + i)
            for i, count in enumerate(asked().tolist())
        ]
        found = model.generate(requests, settings, use_tqdm=False)
        return [len(one.outputs[0].token_ids) for one in found]

    return run


if __name__ == "__main__":
    main()
