"""How fast is attention on this NVIDIA GPU, forward and backward, beside PyTorch's and jax's own?

    attention_gpu.py [--shapes H:K:D:window,…] [--lengths S …] [--document-length 600] [--json FILE]

Ours are the Pallas kernels, and cuDNN, which `impl="gpu"` takes for rows of one document. Those and
all peers compute attention alone, of the same q, k and v in bfloat16; one row more each says what ours takes with
convolution, RoPE and scale. Peers: jax.nn.dot_product_attention by XLA, PyTorch's scaled_dot_product_attention (causal
rows of one document) and FlexAttention, compiled. A side that fails, out of memory for one, is named with its
reason and left out; one whose output differs ends the run. Rows are packed with documents of geometric lengths, or hold
one.

TFLOP/s count the scores that a query sees: 4 H D a score forward, 10 more backward. The share is of what this card's
matrix units reach in a product of random 8192 x 8192 matrices, measured before and after: the larger.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from table import machine, row, show, write

SHAPES = "20:2:256:0,40:8:128:8192"
PASSES = ("forward", "forward and backward")
PRODUCT = 8192
WHOLE = "with convolution and RoPE"
DIFFERENCE = 0.02
"""Of two outputs in bfloat16, whose weights and values have eight bits of mantissa."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--document-length", type=int, default=600, help="mean tokens of a packed document")
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    import jax

    if jax.default_backend() != "gpu":
        print("attention_gpu.py needs an NVIDIA GPU that jax sees: run it where there is one.", file=sys.stderr)
        sys.exit(2)
    print(f"{machine(['jax'])}; {jax.devices()[0].device_kind}")
    peaks, measured = [peak()], []
    for shape in args.shapes.split(","):
        for length in args.lengths:
            for lengths in (documents(length, args.document_length), [length]):
                measured += list(case(shape, length, lengths))
    peaks.append(peak())
    print(f"matrix product: {peaks[0]:.0f} TFLOP/s before, {peaks[1]:.0f} after")
    rows = []
    for name, rates in measured:
        for side, rate in rates.items():
            rows.append(row(f"{name}: {side}", rate, max(peaks), "matrix product", "TFLOP/s"))
        ours = rates.get("cuDNN", rates.get("Pallas"))
        rows += [row(name, ours, rate, side, "TFLOP/s") for side, rate in rates.items() if ours and is_peer(side)]
    show(rows)
    if args.json:
        write(rows, args.json)


def is_peer(side: str) -> bool:
    """Whether a side is somebody else's."""
    return side.startswith(("jax", "PyTorch"))


def documents(length: int, mean: int) -> list[int]:
    """Lengths of documents that fill a row, the last one cut."""
    drawn = np.random.default_rng(0).geometric(1 / mean, size=length)
    ends = np.minimum(np.cumsum(drawn), length)
    return [int(n) for n in np.diff(ends, prepend=0) if n]


def seen(lengths: list[int], window: int | None) -> int:
    """Scores that queries see in a row of documents."""
    reach = (np.minimum(np.arange(n) + 1, window or n).sum() for n in lengths)
    return int(sum(reach))


def seconds(call: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Median of five times ten calls, a call; after three that compile and warm up."""
    for _ in range(3):
        wait(call())
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            last = call()
        wait(last)
        times.append((time.perf_counter() - start) / 10)
    return statistics.median(times)


def peak() -> float:
    """TFLOP/s of this card's matrix units in a product of random matrices."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(i), (PRODUCT, PRODUCT), jnp.bfloat16) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    return 2 * PRODUCT**3 / seconds(lambda: multiply(a, b), jax.block_until_ready) / 1e12


def case(shape: str, length: int, lengths: list[int]) -> Iterator[tuple[str, dict[str, float]]]:
    """(name, TFLOP/s of each side) of both passes over a row of these documents."""
    H, K, D, window = map(int, shape.split(":"))
    reach = window if 0 < window < length else None
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((1, length, heads, D), dtype=np.float32) for heads in (H, K, K, H)]
    ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    label = f"H{H} KV{K} hd{D}{f' W{window}' if window else ''} S{length}"
    label += " whole" if len(lengths) == 1 else f" packed ({len(lengths)} documents)"
    sides = {**jax_sides(arrays, ids, len(lengths) == 1, reach), **torch_sides(arrays, ids, reach)}
    for which in PASSES:
        work = seen(lengths, reach) * H * D * (4 if which == "forward" else 14) / 1e12
        rates: dict[str, float] = {}
        outputs: dict[str, NDArray[np.float32]] = {}
        for side, start in sides.items():
            try:
                call, wait, read = start(which)
                rates[side] = work / seconds(call, wait)
                if which == "forward" and side != WHOLE:
                    outputs[side] = read(call())
            except Exception as error:  # noqa: BLE001 (a library may refuse a shape in any way)
                print(f"{which} {label}: {side} left out, {type(error).__name__}: {str(error).splitlines()[0][:150]}")
        check(outputs, f"{which} {label}")
        told = ", ".join(f"{side} {rate:.0f}" for side, rate in rates.items())
        print(f"{which} {label}, TFLOP/s: {told}", flush=True)
        yield f"{which} {label}", rates


def check(outputs: dict[str, NDArray[np.float32]], name: str) -> None:
    """Ends the program where two sides do not compute the same."""
    first = next(iter(outputs.values()), None)
    for side, out in outputs.items():
        difference = float(np.linalg.norm(out - first) / np.linalg.norm(first))
        if not difference < DIFFERENCE:
            sys.exit(f"{name}: {side} differs from {next(iter(outputs))} by {difference:.3f} of the output's norm.")


def jax_sides(arrays: list[NDArray[np.float32]], ids: NDArray[np.int32], whole: bool, window: int | None) -> Any:
    """What starts each side in jax: a pass's name to a call, how to wait for it, and how to
    read an output (1, S, H, D).
    """
    import jax
    import jax.numpy as jnp

    from m1jax import kernels
    from m1jax.kernels.gpu import attention as gpu

    q, k, v, d_out = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    K, D = k.shape[2:]
    chip, scale = gpu.compute_capability(), D**-0.5
    ones, inv_freq = jnp.ones((K, 2), jnp.float32), 1e-5 ** (jnp.arange(D // 2) * 2 / D)
    layer = kernels.AttentionLayer(conv_k=ones, conv_v=ones, inv_freq=inv_freq, window=window, scale=scale, impl="gpu")
    rows = kernels.Rows(positions=jnp.arange(len(ids))[None], segment_ids=None if whole else jnp.asarray(ids)[None])

    def pallas(q: Any, k: Any, v: Any) -> Any:
        return gpu.pallas(q, k, v, layer, rows, chip=chip)[0]

    def by(implementation: Any) -> Callable[..., Any]:
        return lambda q, k, v: gpu.cudnn(q, k, v, window=window, scale=scale, implementation=implementation)

    def all_of_it(q: Any, k: Any, v: Any) -> Any:
        return kernels.attention(q, k, v, layer, rows)

    def starting(attend: Callable[..., Any]) -> Callable[[str], Any]:
        def start(which: str) -> Any:
            def both(q: Any, k: Any, v: Any) -> Any:
                return jax.vjp(attend, q, k, v)[1](d_out)

            program = jax.jit(attend if which == "forward" else both)
            return lambda: program(q, k, v), jax.block_until_ready, lambda out: np.asarray(out, np.float32)

        return start

    sides = {"Pallas": pallas, WHOLE: all_of_it}
    if whole:
        sides |= {"cuDNN": by("cudnn"), "jax XLA": by("xla")}
    return {name: starting(attend) for name, attend in sides.items()}


def torch_sides(arrays: list[NDArray[np.float32]], ids: NDArray[np.int32], window: int | None) -> Any:
    """As `jax_sides`, of PyTorch; none where it is not installed or sees no GPU."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: its sides are left out.")
        return {}
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU: its sides are left out.")
        return {}
    return sides_on("cuda", torch.cuda.synchronize, arrays, ids, window)


def sides_on(
    device: str, wait: Callable[[], Any], arrays: list[NDArray[np.float32]], ids: NDArray[np.int32], window: int | None
) -> Any:
    """PyTorch's sides on a device."""
    import torch
    from torch.nn.attention import flex_attention as flex

    tensors = [torch.from_numpy(x).to(device, torch.bfloat16).transpose(1, 2).contiguous() for x in arrays]
    d_out, length = tensors.pop(), len(ids)
    segments = torch.from_numpy(ids).to(device)

    def visible(b: Any, h: Any, query: Any, key: Any) -> Any:
        mask = (query >= key) & (segments[query] == segments[key])
        return mask if window is None else mask & (query - key < window)

    blocks = flex.create_block_mask(visible, None, None, length, length, device=device)
    compiled = torch.compile(flex.flex_attention)

    def by_flex(q: Any, k: Any, v: Any) -> Any:
        return compiled(q, k, v, block_mask=blocks, enable_gqa=True)

    def by_sdpa(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def starting(attend: Callable[..., Any]) -> Callable[[str], Any]:
        def start(which: str) -> Any:
            given = [x.detach().requires_grad_(which != "forward") for x in tensors]

            def call() -> Any:
                out = attend(*given)
                return out if which == "forward" else torch.autograd.grad(out, given, d_out)

            return call, lambda _: wait(), lambda out: out.transpose(1, 2).float().cpu().numpy()

        return start

    sides = {"PyTorch FlexAttention": by_flex}
    if ids[0] == ids[-1] and window is None:
        sides["PyTorch SDPA"] = by_sdpa
    return {name: starting(attend) for name, attend in sides.items()}


if __name__ == "__main__":
    main()
