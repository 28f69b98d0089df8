"""Where does the engine of `m1 serve` spend its time on this machine's CPU, without HTTP and without a peer?

SmolLM2-135M-Instruct's weights and the requests of serving.py (the engine alone, in this process; a closed loop of 32).
What is printed are the seconds of each compiled program, by its shapes, each call waited for.

    python benchmarks/serving_profile.py --dtype bfloat16
"""

import argparse
import collections
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from serving import CONTEXT, requests_of
from smollm2_models import write_models
from table import machine

CLIENTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--requests", type=int, default=128, help="of the second turn; the first is 64, to warm up")
    args = parser.parse_args()
    import m1jax
    from m1jax.generate.programs import Prepared
    from m1jax.generate.room import Limits

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_models(folder)
        model, _ = m1jax.load(folder / "ours", dtype=args.dtype)
        engine = model.online(Limits(max_batch=CLIENTS, cache_bytes=4 << 30, context=CONTEXT))
        engine.warm()
        answer(engine, 64, 0)
        spent: collections.Counter[str] = collections.Counter()
        calls: collections.Counter[str] = collections.Counter()
        plain = Prepared._timed
        Prepared._timed = watched(plain, spent, calls)  # type: ignore[method-assign]
        begun = time.perf_counter()
        tokens = answer(engine, args.requests, 1)
        seconds = time.perf_counter() - begun
        Prepared._timed = plain  # type: ignore[method-assign]
        print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s in {args.dtype}")
        for name, value in spent.most_common(14):
            print(f"  {value:7.2f} s {calls[name]:6} x {1000 * value / max(1, calls[name]):7.1f} ms  {name}")
    print(f"{machine(['jax'])}; load {os.getloadavg()[0]:.1f}")


def answer(engine: Any, count: int, seed: int) -> int:
    """Requests in a closed loop; tokens that were asked for."""
    from m1jax.generate.requests import Request
    from m1jax.generate.sampling import Sampling

    asked = requests_of(count, seed)
    left = iter(asked)

    def submit() -> None:
        if (one := next(left, None)) is not None:
            engine.submit(Request(*one, sampling=Sampling(temperature=1.0)), listen)

    def listen(progress: Any) -> None:
        if progress.finish_reason:
            submit()

    for _ in range(CLIENTS):
        submit()
    while engine.step():
        pass
    return sum(limit for _, limit in asked)


def watched(plain: Any, spent: Any, calls: Any) -> Any:
    """`Prepared._timed`, whose seconds are counted by program, batch and room; each call is waited for."""
    import jax

    def timed(self: Any, program: Any, ours: Any, args: Any) -> Any:
        begun = time.perf_counter()
        result, compiling = plain(self, program, ours, args)
        jax.block_until_ready(result)
        name = program.__name__
        if name in ("prefill", "decode"):
            name += f" {'x'.join(map(str, args[1].shape))}, room {args[0].cache.layers[0].k.shape[2]}"
        spent[name] += time.perf_counter() - begun - compiling
        spent["compiling"] += compiling
        calls[name] += 1
        return result, compiling

    return timed


if __name__ == "__main__":
    main()
