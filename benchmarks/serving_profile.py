"""Where does the engine of `m1 serve` spend its time on this machine's CPU, without HTTP and without a peer?

SmolLM2-135M-Instruct's weights and the requests of serving.py (the engine alone, in this process; a closed loop of 32).
First the seconds of each compiled program, with shapes; then the operations of one decoding step of all slots, by kind
and shape of the result. Operations that run beside each other count twice.

    python benchmarks/serving_profile.py --dtype bfloat16
"""

import argparse
import collections
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from serving import CONTEXT, requests_of
from smollm2_models import write_models
from table import machine

CLIENTS, STEPS, ROOM = 32, 20, 768
_OPERATION = re.compile(r"%(\S+) = (\w+\[[\d,]*\])\S* ([\w-]+)\(")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--requests", type=int, default=128, help="of the second turn; the first is 64, to warm up")
    args = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_cpu_enable_xprof_traceme=true"
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
        operations(model._prepared, folder)
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


def operations(prepared: Any, folder: Path) -> None:
    """Prints what a decoding step of all slots does."""
    import jax

    from m1jax.generate import programs
    from m1jax.generate.requests import END_IDS, empty_draws

    zeros, limit = np.zeros(CLIENTS, np.int32), np.full(CLIENTS, 64, np.int32)

    def arguments() -> tuple[Any, ...]:
        state = prepared.placed(prepared.arrange(programs.start, CLIENTS, ROOM)[0])
        draws = empty_draws(CLIENTS, prepared.config.vocab_size)
        draws = draws._replace(controls=draws.controls._replace(temperature=draws.controls.temperature + 1))
        ends = np.full((CLIENTS, END_IDS), -1, np.int32)
        most, leaving = np.int32(STEPS), np.int32(CLIENTS + 1)
        return state, zeros > 0, zeros, limit, most, leaving, ends, prepared.placed(draws)

    ours = prepared.structure, prepared.mesh, prepared.parameters, prepared.rope_base
    text = programs.decode.lower(*ours, *arguments()).compile().as_text()
    jax.block_until_ready(prepared.run(programs.decode, *arguments()))
    given = jax.block_until_ready(arguments())
    with jax.profiler.trace(str(folder)):
        begun = time.perf_counter()
        jax.block_until_ready(prepared.run(programs.decode, *given))
        seconds = time.perf_counter() - begun
    kinds = {found[1]: (kind_of(found[1], found[3], text), found[2]) for found in _OPERATION.finditer(text)}
    spent: collections.Counter[tuple[str, str]] = collections.Counter()
    for name, duration in events(folder):
        if name in kinds:
            spent[kinds[name]] += duration / STEPS
    print(f"a step of {CLIENTS} rows with room for {ROOM}: {1000 * seconds / STEPS:.1f} ms, of which")
    for (kind, shape), value in spent.most_common(14):
        print(f"  {value:7.2f} ms  {kind} {shape}")


def kind_of(name: str, opcode: str, text: str) -> str:
    """A fusion by what it computes: a product, or its name."""
    called = re.search(rf"%{re.escape(name)} = .*calls=(%[\w.\-]+)", text)
    body = called and re.search(rf"\n{re.escape(called[1])} .*?\n\}}", text, re.DOTALL)
    if body and " dot(" in body[0]:
        return "product"
    return re.sub(r"[.\d]+$", "", name) if opcode == "fusion" else opcode


def events(folder: Path) -> Iterator[tuple[str, float]]:
    """Operations of a trace with their milliseconds."""
    import jax

    (file,) = folder.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                yield event.name, event.duration_ns / 1e6


if __name__ == "__main__":
    main()
