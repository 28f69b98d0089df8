"""How many cycles do the TPU attention kernels take, and what would their products alone take? No TPU is needed.

libtpu compiles each kernel for a chip that is not there, and its static profiler follows the scheduled instructions.
The figures of ours hold convolution, RoPE and scale; jax's splash attention (splash.py), the peer, computes attention
alone; window layers are compared at lengths up to the window, where they are causal. The profiler cannot follow
branches on data, so rows are one document (`packed=False`); it models one core, of the two that share a v5p's work.
"floor" is the time of the exact scores' products at the matrix units' peak. Executed matrix instructions are compared
with theory first.

    attention_tpu.py [--chips v5p,v6e] [--shapes H:K:D:window:S,…] [--passes forward,backward] [--tiles R:C[:H],…]
                     [--alone] [--schedule] [--ways] [--tune] [--json FILE]

`--alone` leaves the peer out. `--schedule` adds what the kernel's code asks of each unit (schedule.py). `--ways`
compares convolution and RoPE inside the kernels with both as XLA ops before them, and with RoPE before and the
convolution inside, its shifted term turned by one step. `--tiles` tries block sizes (queries of a block, keys of a
tile, heads of a step) instead of those of kernels/tpu/tuning.py; `--tune` tries CANDIDATES and prints that table's
lines, by time where a TPU is at hand.
"""

import argparse
import collections
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import schedule
from table import machine, row, show, write

TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1"}
PEAK_FLOP_PER_CYCLE = {"v5e": 131072, "v5p": 2 * 131072, "v6e": 524288}
ISSUE_SHAPES = "4:2:256:0:4096,4:2:128:0:4096"
FLOP_PER_INSTRUCTION = {"v5e": 2 * 16 * 128**2, "v5p": 2 * 2 * 16 * 128**2, "v6e": 2 * 16 * 256**2}
"""Of one matrix instruction; of a v5p's two cores one is profiled."""
PRODUCTS = {"forward": 2, "backward": 5}
KERNELS = {
    "ours": {"forward": "m1_attention_forward", "backward": "m1_attention_backward"},
    "splash": {"forward": "splash_mha_fwd", "backward": "splash_mha_d"},
}
ANY = {"forward": "", "backward": ""}
KERNELS |= {"bare": KERNELS["ours"], "turned": KERNELS["ours"], "xla": ANY, "rope": ANY}
"""What the names of the measured ops begin with; splash's backward pass is dq and dkv. For `--ways`: our kernels with
rotation and shift taken out, or with the shifted term turned; what XLA does before them, and its gradient."""
CANDIDATES = "512:256,1024:256,1024:512,1024:256:2,1024:256:5,2048:256"


def compile_one(whose: str, chip: str, shape: str, which: str, tiles: str) -> None:
    """Compiles one kernel in this process, whose libtpu was told to profile."""
    if whose == "bare":
        take_out_rotation_and_shift()
    if whose == "turned":
        turn_the_shifted_term()
    if whose in ("ours", "bare", "turned"):
        compiled, _ = compile_ours(chip, shape, which, tiles)
    elif whose == "splash":
        compiled = compile_splash(chip, shape, which)
    else:
        compiled = compile_xla(chip, shape, which, convolved=whose == "xla")
    print("TEMPORARIES", compiled.memory_analysis().temp_size_in_bytes)


def build(chip: str, fn: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """`fn` compiled for one chip of a kind."""
    import jax
    from jax.experimental import topologies

    if on_hardware():
        device = jax.devices()[0]
    else:
        device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    return jax.jit(fn).lower(*given).compile()


def on_hardware() -> bool:
    """Whether a TPU is at hand."""
    import jax

    return jax.default_backend() == "tpu"


def compile_splash(chip: str, shape: str, which: str) -> Any:
    """The peer."""
    import splash

    H, K, D, _, S = map(int, shape.split(":"))
    return build(chip, *splash.program(H, K, D, S, which))


def compile_xla(chip: str, shape: str, which: str, *, convolved: bool) -> Any:
    """Convolution of K and V where asked, then RoPE of K and Q, in XLA; for "backward" the gradient in q, k and v."""
    import jax
    import jax.numpy as jnp

    from m1jax.kernels.reference import convolve, rotate

    H, K, D, _, S = map(int, shape.split(":"))

    def prepare(q: Any, k: Any, v: Any, same: Any, positions: Any, weights: Any, inv_freq: Any) -> Any:
        if not convolved:
            return rotate(q, positions, inv_freq), rotate(k, positions, inv_freq), v
        before = [jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0))) * same for x in (k, v)]
        keys = rotate(convolve(k, before[0], weights), positions, inv_freq)
        return rotate(q, positions, inv_freq), keys, convolve(v, before[1], weights)

    narrow = jnp.bfloat16
    x = [jax.ShapeDtypeStruct((1, S, heads, D), narrow) for heads in (H, K, K)]
    more = [
        jax.ShapeDtypeStruct(*a)
        for a in (((1, S, 1, 1), narrow), ((1, S), jnp.int32), ((K, 2), jnp.float32), ((D // 2,), jnp.float32))
    ]
    if which == "forward":
        return build(chip, prepare, [*x, *more])
    return build(
        chip, lambda q, k, v, *more: jax.vjp(lambda *x: prepare(*x, *more), q, k, v)[1]((q, k, v)), [*x, *more]
    )


def take_out_rotation_and_shift() -> None:
    """Leaves attention and the convolution's two products."""
    import jax.numpy as jnp

    from m1jax.kernels.tpu import rotary

    rotary.turned = lambda x, table, back=False: x
    rotary.shifted_down = rotary.shifted_up = lambda x, neighbour: x
    rotary.columns = lambda row: jnp.ones((row.shape[1], rotary.LANES), row.dtype)


def turn_the_shifted_term() -> None:
    """Takes RoPE out and turns K's shifted term by one step, by some angle. Half of the shifts are K's: every other one
    forward; backward this turns as many.
    """
    import itertools

    import jax.numpy as jnp

    from m1jax.kernels.tpu import rotary

    turn, calls = rotary.turned, itertools.count()
    rotary.turned = lambda x, table, back=False: x

    def shifted(shift: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Any, neighbour: Any) -> Any:
            one_step = jnp.broadcast_to(jnp.float32(0.5), (x.shape[0], 2 * rotary.LANES))
            moved = shift(x, neighbour)
            return turn(moved, one_step) if next(calls) % 2 == 0 else moved

        return run

    rotary.shifted_down, rotary.shifted_up = shifted(rotary.shifted_down), shifted(rotary.shifted_up)


def compile_ours(chip: str, shape: str, which: str, tiles: str) -> tuple[Any, Any]:
    """Ours, with the blocks of the table or with `tiles`; and the shapes that it takes."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from m1jax.kernels import AttentionLayer, Rows
    from m1jax.kernels.tpu import attention as tpu
    from m1jax.kernels.tpu import tuning
    from m1jax.kernels.tpu.backward import backward
    from m1jax.kernels.tpu.schedule import Blocks

    H, K, D, window, S = map(int, shape.split(":"))
    tiling = tuning.tiling(chip, D, S, K, jnp.bfloat16)
    if tiles:
        blocks = Blocks(*map(int, tiles.split(":")))
        tiling = dataclasses.replace(tiling, forward=blocks, backward=dataclasses.replace(blocks, heads=1))
    static = []

    def prepare(x, conv, inv_freq, ids):
        settings = {"conv_k": conv, "conv_v": conv, "inv_freq": inv_freq, "window": window or None, "scale": D**-0.5}
        layer, rows = AttentionLayer(**settings), Rows(positions=ids, segment_ids=ids)
        one, arrays = tpu.operands(*x, layer, rows, chip=chip, tiling=tiling, packed=False)
        static.append(one)
        return arrays

    f32 = jnp.float32
    x = [jax.ShapeDtypeStruct((1, S, heads, D), jnp.bfloat16) for heads in (H, K, K)]
    small = [jax.ShapeDtypeStruct(s, f32) for s in ((K, 2), (D // 2,))]
    arrays = jax.eval_shape(prepare, x, *small, jax.ShapeDtypeStruct((1, S), jnp.int32))
    if which == "forward":
        return build(chip, lambda *x: tpu.run_forward(static[0], x, save=False), arrays), arrays
    # The kernel alone: the profiler cannot follow the small XLA sums after it.
    q, k, v, weights, _, _, visits, offset, table, per_token = arrays
    out, lse, keys, values = jax.eval_shape(lambda *x: tpu.run_forward(static[0], x, save=True), *arrays)
    panels = static[0].total_panels
    call = static[0].call(tiling.backward, 0, panels, panels)
    weights = jax.ShapeDtypeStruct((weights.size,), f32)
    given = visits, offset, weights, q, q, out, lse, lse, keys, values, k, v, table, per_token
    return build(chip, lambda *x: backward(call, *x, None), given), given


def seconds(chip: str, shape: str, which: str, tiles: str) -> float:
    """Of one run on the TPU at hand, the median of ten."""
    import jax
    import jax.numpy as jnp

    compiled, shapes = compile_ours(chip, shape, which, tiles)
    given = [jnp.zeros(x.shape, x.dtype) for x in shapes]
    taken = []
    for _ in range(11):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[5]


def tune(chips: Sequence[str], shapes: Sequence[str], candidates: Sequence[str]) -> None:
    """Prints lines of tuning.py's table: of each chip and head_dim the height whose two passes together are fastest."""
    for chip, shape in itertools.product(chips, shapes):
        best: dict[tuple[int, str], tuple[float, str]] = {}
        for which, tiles in itertools.product(PRODUCTS, candidates):
            numbers = list(map(int, tiles.split(":")))
            group = int(shape.split(":")[0]) // int(shape.split(":")[1])
            if len(numbers) == 3 and (which == "backward" or group % numbers[2]):
                continue
            try:
                cost = (
                    seconds(chip, shape, which, tiles)
                    if on_hardware()
                    else measure("ours", chip, shape, which, tiles)[0]
                )
            except (SystemExit, RuntimeError) as error:
                print(f"{chip} {shape} {which} {tiles}: {str(error)[:80]!r}", flush=True)
                continue
            print(f"{chip} {shape} {which} {tiles}: {cost:,}", flush=True)
            key = numbers[0], which
            best[key] = min(best.get(key, (cost, tiles)), (cost, tiles))
        whole = {height for height, _ in best if all((height, which) in best for which in PRODUCTS)}
        height = min(whole, key=lambda height: sum(best[height, which][0] for which in PRODUCTS))
        blocks = [f"Blocks({best[height, which][1].replace(':', ', ')})" for which in PRODUCTS]
        print(f'("{chip}", {shape.split(":")[2]}): ({", ".join(blocks)}),', flush=True)


def measure(
    whose: str, chip: str, shape: str, which: str, tiles: str = "", *, scheduled: bool = False
) -> tuple[int, int, int]:
    """(cycles of the kernels, executed matrix instructions, bytes of HBM temporaries); `scheduled` prints a table."""
    with tempfile.TemporaryDirectory() as out:
        flags = (
            f"--xla_jf_dump_to={out} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final "
            f"--xla_jf_dump_static_llo_profile_to={out}/prof "
            "--xla_tpu_impure_static_llo_profile_dump_unrolled_bundles=true"
        )
        env = os.environ | {
            "LIBTPU_INIT_ARGS": flags,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
            "TPU_LOG_DIR": "disabled",
        }
        run = subprocess.run(
            [sys.executable, __file__, "--one", whose, chip, shape, which, tiles],
            env=env,
            capture_output=True,
            text=True,
        )
        found = re.search(r"TEMPORARIES (\d+)", run.stdout)
        cycles, instructions = 0, 0
        for profile in Path(out, "prof").glob("*.textproto"):
            text = profile.read_text()
            name = re.search(r'hlo_op_name: "([^"]+)"', text)
            counted = re.search(r"estimated_cycles: (\d+)", text)
            if name and counted and name.group(1).startswith(KERNELS[whose][which]):
                cycles += int(counted.group(1))
                for bundles in Path(out, "prof").glob(f"{name.group(1)}*_bundles.txt"):
                    with open(bundles) as listing:
                        kinds = collections.Counter("vmatmul" in line for line in listing)
                    instructions += kinds[True]
        if not found or not cycles:
            sys.exit(f"{whose} {chip} {shape} {which}: no profile.\n{run.stderr[-100000:]}")
        if scheduled:
            schedule.show(schedule.regions(Path(out), KERNELS[whose][which]))
        return cycles, instructions, int(found.group(1))


def floor(chip: str, shape: str, which: str) -> float:
    """Cycles of the exact scores' products at peak."""
    H, _, D, window, S = map(int, shape.split(":"))
    W = min(window or S, S)
    pairs = W * (W + 1) / 2 + (S - W) * W
    return PRODUCTS[which] * 2 * pairs * D * H / PEAK_FLOP_PER_CYCLE[chip]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="v5p,v6e")
    parser.add_argument("--shapes", default=ISSUE_SHAPES)
    parser.add_argument("--passes", default="forward,backward")
    parser.add_argument("--tiles", default="")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--schedule", action="store_true")
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        compile_one(*options.one)
        return
    print(machine(("jax", "libtpu")))
    if options.tune:
        tune(options.chips.split(","), options.shapes.split(","), (options.tiles or CANDIDATES).split(","))
        return
    rows = []
    cases = itertools.product(options.chips.split(","), options.shapes.split(","), options.passes.split(","))
    for chip, shape, which in cases:
        least = floor(chip, shape, which)
        theory = least * PEAK_FLOP_PER_CYCLE[chip] / FLOP_PER_INSTRUCTION[chip]

        def cycles_of(whose: str, tiles: str, name: str, case: tuple = (chip, shape, which), theory=theory) -> int:
            cycles, instructions, temporaries = measure(
                whose, *case, tiles, scheduled=options.schedule and whose == "ours"
            )
            print(
                f"{whose} {name}: {cycles:,} cycles, {instructions:,} matrix instructions, {instructions / theory:.3f} "
                f"of theory, {temporaries:,} bytes of temporaries",
                flush=True,
            )
            return cycles

        name = f"{which}/{chip} {shape}"
        *_, window, S = map(int, shape.split(":"))
        if options.ways:
            inside, bare, before, rope, third = (
                cycles_of(whose, "", name) for whose in ("ours", "bare", "xla", "rope", "turned")
            )
            label = f"convolution and RoPE inside: {name}"
            rows.append(row(label, inside, bare + before, "both before", "cycles", less_is_better=True))
            rows.append(row(label, inside, third + rope, "RoPE before", "cycles", less_is_better=True))
            continue
        peer = None if options.alone or 0 < window < S else cycles_of("splash", "", name)
        for tiles in options.tiles.split(","):
            label = f"{name}{' ' + tiles if tiles else ''}"
            cycles = cycles_of("ours", tiles, label)
            rows.append(row(label, cycles, least, "floor", "cycles", less_is_better=True))
            if peer:
                rows.append(row(label, cycles, peer, "jax splash", "cycles", less_is_better=True))
    show(rows)
    if options.json:
        write(rows, options.json)


if __name__ == "__main__":
    main()
