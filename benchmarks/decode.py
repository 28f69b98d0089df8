"""How fast are prefill and decoding on this machine's CPU, beside mlx-lm and the exported PyTorch model?

One random model (126M parameters, half its layers with a window of 1,024) is exported once a dtype; each program loads
that folder in a process of its own, one after the other, with the same number of threads. Prefill is the last 256
tokens of the context in one batch; decoding is greedy, 32 tokens. The context before that is put
into the caches as random keys and values, since mlx-lm would take hours to compute it (PyTorch computes it).

    python benchmarks/decode.py --json decode.json --plot docs/decode.png
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from table import machine, row, show, write

SIDES = {"m1jax": "m1jax", "mlx": "mlx-lm", "torch": "PyTorch export"}
PREFILL, NEW = 256, 32
SHAPE = {
    "vocab_size": 32768, "hidden": 768, "ffn": 2048, "num_layers": 12, "num_heads": 3, "num_kv_heads": 1,
    "window_num_heads": 6, "window_num_kv_heads": 2, "window": 1024, "norm_eps": 1e-6, "init_std": 0.02,
    "max_positions": 16384,
}  # fmt: skip
Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="FILE", help="draw milliseconds a token over the context, by kind of layer")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 4096])
    parser.add_argument("--peers", nargs="*", default=["mlx", "torch"], choices=["mlx", "torch"])
    parser.add_argument(
        "--repeats", type=int, default=3, help="of which medians are taken; mlx-lm is slow and runs once"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        cells = [(batch, context) for batch in args.batches for context in args.contexts]
        print(json.dumps(list(measure(args.side, Path(args.folder), cells, args.repeats))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in args.dtypes:
            rows += compare(make(Path(scratch) / dtype, dtype), dtype, args)
    print(machine(["jax", "mlx", "mlx-lm", "torch", "transformers"]) + "\n")
    show(rows)
    if args.json:
        write(rows, args.json)
    if args.plot:
        plot(args.plot)


def compare(folder: Path, dtype: str, args: argparse.Namespace) -> list[Any]:
    """Rows of our cells beside each peer's."""
    ours, *peers = (side_process(side, folder, args) for side in ("m1jax", *args.peers))
    rows = []
    for side, cells in zip(args.peers, peers, strict=True):
        for mine, theirs in zip(ours, cells, strict=True):
            for what in ("prefill", "decode"):
                name = f"{what}/{dtype}, batch {mine['batch']}, context {mine['context']}"
                rows.append(row(name, mine[what], theirs[what], SIDES[side], "token/s"))
    return rows


def side_process(side: str, folder: Path, args: argparse.Namespace) -> list[Cell]:
    """The cells as one program measures them, with as many threads as there are cores."""
    print(f"{folder.name}: {SIDES[side]} …", file=sys.stderr)
    threads = str(os.cpu_count())
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--repeats", str(args.repeats)]
    command += ["--batches", *map(str, args.batches), "--contexts", *map(str, args.contexts)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make(folder: Path, dtype: str) -> Path:
    """An exported random model."""
    from m1jax import model
    from m1jax.config import ModelConfig
    from m1jax.convert import hf

    config = ModelConfig(**SHAPE, param_dtype=dtype, compute_dtype=dtype)
    folder.mkdir()
    hf.export(model.create(config, 0)[1], config, 1e5, None, folder, {"bos_token_id": 0, "eos_token_id": 1})
    return folder


def measure(side: str, folder: Path, cells: list[tuple[int, int]], repeats: int) -> Iterator[Cell]:
    """Tokens a second of every (batch, context)."""
    run = {"m1jax": open_m1jax, "mlx": open_mlx, "torch": open_torch}[side](folder)
    for batch, context in cells:
        tokens = np.random.default_rng(0).integers(384, SHAPE["vocab_size"], (batch, context))
        times = [run(tokens, NEW) for _ in range(1 if side == "mlx" else repeats)]
        prefill, decode = (statistics.median(column) for column in zip(*times, strict=True))
        yield {
            "batch": batch,
            "context": context,
            "prefill": batch * PREFILL / prefill,
            "decode": batch * NEW / decode,
        }


Run = Callable[[np.ndarray, int], tuple[float, float]]


def open_m1jax(folder: Path) -> Run:
    """Ours: seconds of the prefill's last chunk, and of decoding, compilation left out."""
    import jax
    import jax.numpy as jnp

    import m1jax

    model, _ = m1jax.load(folder)

    def run(tokens: np.ndarray, new: int) -> tuple[float, float]:
        batch, context = tokens.shape
        session = model.session(batch, context + new)
        cache = session.state.cache
        layers = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype), cache.layers)
        cache = cache._replace(layers=layers, lengths=jnp.full(batch, context - PREFILL, jnp.int32))
        session.state = session.state._replace(cache=cache)
        session.tokens = tokens[:, :-PREFILL].tolist()
        session.extend(tokens[:, -PREFILL:].tolist())
        session.generate(new)
        return session.timing.prefill_seconds, session.timing.decode_seconds

    return run


def open_mlx(folder: Path) -> Run:
    """mlx-lm's model as its own generation calls it, on a cache filled by its own update."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    dtype = model.model.embed_tokens.weight.dtype

    def run(tokens: np.ndarray, new: int) -> tuple[float, float]:
        batch, context = tokens.shape
        cache = model.make_cache()
        for layer, (conv, keys) in zip(model.layers, cache, strict=True):
            shape = batch, layer.self_attn.num_kv_heads, PREFILL, layer.self_attn.head_dim
            conv[0] = conv[1] = mx.random.normal((*shape[:2], 1, shape[3])).astype(dtype)
            for _ in range(context // PREFILL - 1):
                mx.eval(keys.update_and_fetch(*(mx.random.normal(shape).astype(dtype) for _ in range(2))))
        start = time.perf_counter()
        logits = model(mx.array(tokens[:, -PREFILL:]), cache=cache)
        token = mx.argmax(logits[:, -1], axis=-1)
        mx.eval(token)
        prefilled = time.perf_counter()
        for _ in range(new):
            token = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
            mx.eval(token)
        return prefilled - start, time.perf_counter() - prefilled

    return run


def open_torch(folder: Path) -> Run:
    """The PyTorch model that the export carries, through transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()

    @torch.inference_mode()
    def run(tokens: np.ndarray, new: int) -> tuple[float, float]:
        cache = None
        for start in range(0, tokens.shape[1] - PREFILL, PREFILL):
            chunk = torch.from_numpy(tokens[:, start : start + PREFILL])
            cache = model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        begun = time.perf_counter()
        last = torch.from_numpy(tokens[:, -PREFILL:])
        out = model(last, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(new):
            out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
        return prefilled - begun, time.perf_counter() - prefilled

    return run


def plot(path: str) -> None:
    """Milliseconds of a decoded token over the context: models of global layers only, window layers only, and both."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from m1jax import model as models
    from m1jax.config import ModelConfig
    from m1jax.generate import LanguageModel

    contexts = [256, 512, 1024, 2048, 4096, 8192]
    figure, axes = plt.subplots(figsize=(7, 4))
    # Small everywhere but in attention, so that the cache is what a step reads.
    shape = SHAPE | {"vocab_size": 1024, "ffn": 256, "num_layers": 8}
    for kinds in (("global",), ("global", "window"), ("window",)):
        config = ModelConfig(**shape, pattern=kinds)
        model = LanguageModel(config, 1e5, models.create(config, 0)[1])
        session = model.session(8)
        milliseconds = []
        for context in contexts:
            missing = context - len(session.tokens[0])
            session.extend(np.random.default_rng(0).integers(0, 1024, (8, missing)).tolist())
            session.generate(NEW)
            before = replace(session.timing)
            session.generate(NEW)
            milliseconds.append((session.timing.decode_seconds - before.decode_seconds) / NEW * 1e3)
        axes.plot(contexts, milliseconds, marker="o", label=" and ".join(kinds) + " layers")
        print(f"ms a step, {' and '.join(kinds)}: " + ", ".join(f"{ms:.1f}" for ms in milliseconds))
    axes.axvline(SHAPE["window"], color="grey", linestyle=":", label="window")
    axes.set(xscale="log", xlabel="tokens of context", ylabel="milliseconds a step, batch 8", ylim=0)
    axes.set_xticks(contexts, [f"{c:,}" for c in contexts])
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
