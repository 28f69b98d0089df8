"""How fast are prefill and greedy decoding of SmolLM2-135M-Instruct on this machine's CPU, beside what people use?

The weights are those of tests/convert/smollm2.py: a Llama as a Baichuan-M1 for m1jax, as itself for transformers,
vLLM's CPU build and llama.cpp (a GGUF file in the same dtype). Each program is a process with as many threads as there
are cores; their turns alternate, and medians are taken. Prefill is the whole context in one batch with nothing kept
from an earlier turn; decoding is greedy, 32 tokens, at batch 1 and 8 (llama.cpp's bindings: at 1 only). Compilation and
each side's first turn are left out.

    python -m venv vllm_venv    # docs/generation.md says what to install in it
    python benchmarks/decode_smollm2.py --vllm vllm_venv/bin/python --json decode_smollm2.json
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
from smollm2_models import NAMES, open_transformers, write_gguf, write_models
from table import machine, row, show, write

NEW, WORDS = 32, 30_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM's CPU build")
    parser.add_argument("--llama", metavar="PYTHON", help="of an environment with llama-cpp-python")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 4096])
    parser.add_argument("--turns", type=int, default=4, help="of each side; the first is left out")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(json.loads(args.side))
        return
    pythons = {"m1jax": sys.executable, "torch": sys.executable, "vllm": args.vllm, "llama": args.llama}
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = write_models(folder)
        for dtype in args.dtypes if args.llama else []:
            write_gguf(file, folder / f"{dtype}.gguf", dtype)
        for dtype in args.dtypes:
            rows += compare(folder, dtype, {side: python for side, python in pythons.items() if python}, args)
    print(f"{machine(['jax', 'torch', 'transformers'])}; load {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def compare(folder: Path, dtype: str, pythons: dict[str, str], args: argparse.Namespace) -> list[Any]:
    """Rows of one dtype: ours beside each peer."""
    longest = max(args.contexts) + NEW
    cell = {"folder": str(folder), "dtype": dtype, "positions": longest, "batch": max(args.batches)}
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    processes: dict[str, Any] = {}
    try:
        for side, python in pythons.items():
            processes[side] = start(python, __file__, {**cell, "side": side})
            ask(processes[side])
        for turn in range(args.turns):
            for batch in args.batches:
                for context in args.contexts:
                    for side, process in processes.items():
                        if side != "llama" or batch == 1:
                            taken = ask(process, f"{batch} {context} {turn}")
                            found.setdefault((side, batch, context), []).append(taken)
    finally:
        for process in processes.values():
            process.kill()

    def rate(side: str, batch: int, context: int, decode: bool) -> float:
        seconds = statistics.median(taken[decode] for taken in found[side, batch, context][1:])
        return batch * (NEW if decode else context) / seconds

    return [
        row(
            f"{'decode' if decode else 'prefill'}/{dtype}, batch {batch}, context {context}",
            rate("m1jax", batch, context, decode),
            rate(side, batch, context, decode),
            NAMES[side],
            "token/s",
        )
        for side in list(pythons)[1:]
        for batch in args.batches
        for context in args.contexts
        if (side, batch, context) in found
        for decode in (False, True)
    ]


def side(cell: dict[str, Any]) -> None:
    """A side: answers "batch context turn" with seconds of prefill and of decoding."""
    opened = {"m1jax": open_m1jax, "torch": open_torch, "vllm": open_vllm, "llama": open_llama}[cell["side"]]

    def ready() -> Callable[[str], tuple[float, float]]:
        run = opened(cell)

        def turn(words: str) -> tuple[float, float]:
            batch, context, number = map(int, words.split())
            return run(np.random.default_rng([number, context]).integers(100, WORDS, (batch, context)))

        return turn

    serve(ready)


def open_m1jax(cell: dict[str, Any]) -> Any:
    """Ours."""
    import m1jax

    model, _ = m1jax.load(Path(cell["folder"]) / "ours", dtype=cell["dtype"])

    def run(tokens: np.ndarray) -> tuple[float, float]:
        session = model.session(len(tokens), tokens.shape[1])
        session.extend(tokens.tolist())
        session.generate(NEW)
        return session.timing.prefill_seconds, session.timing.decode_seconds

    return run


def open_torch(cell: dict[str, Any]) -> Any:
    """The Llama of transformers with its own cache."""
    import torch

    model = open_transformers(cell)

    @torch.inference_mode()
    def run(tokens: np.ndarray) -> tuple[float, float]:
        begun = time.perf_counter()
        out = model(torch.from_numpy(tokens), use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(NEW):
            out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
        return prefilled - begun, time.perf_counter() - prefilled

    return run


def open_vllm(cell: dict[str, Any]) -> Any:
    """vLLM: the time to one token is its prefill, what 32 more tokens add is its decoding."""
    from vllm import LLM, SamplingParams

    model = LLM(
        str(Path(cell["folder"]) / "theirs"),
        dtype=cell["dtype"],
        max_model_len=cell["positions"] + 1,
        max_num_seqs=cell["batch"],
        enable_prefix_caching=False,
    )

    def seconds(tokens: np.ndarray, new: int) -> float:
        prompts: Any = [{"prompt_token_ids": ids} for ids in tokens.tolist()]
        settings = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        model.generate(prompts, settings, use_tqdm=False)
        return time.perf_counter() - begun

    def run(tokens: np.ndarray) -> tuple[float, float]:
        prefill = seconds(tokens, 1)
        return prefill, seconds(tokens, 1 + NEW) - prefill

    return run


def open_llama(cell: dict[str, Any]) -> Any:
    """llama.cpp through llama-cpp-python, one sequence."""
    from llama_cpp import Llama

    threads = os.cpu_count() or 1
    model = Llama(
        str(Path(cell["folder"]) / f"{cell['dtype']}.gguf"),
        n_ctx=cell["positions"], n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False,
    )  # fmt: skip

    def run(tokens: np.ndarray) -> tuple[float, float]:
        model.reset()
        begun = time.perf_counter()
        model.eval(tokens[0].tolist())
        prefilled = time.perf_counter()
        for _ in range(NEW):
            model.eval([model.sample(temp=0.0)])
        return prefilled - begun, time.perf_counter() - prefilled

    return run


if __name__ == "__main__":
    main()
