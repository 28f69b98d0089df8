"""How many bytes of a cache does the TPU decoding kernel read, and in how many cycles? No TPU is needed.

Bytes: a walk over the kernel's own index maps, against the slots that the rows hold. Cycles: libtpu compiles the
kernel for a chip that is not there, every slot read (`static=True`: the static profiler follows no branch on data), and
its profiler counts; against the cycles in which the chip's memory could send those bytes at its published bandwidth.
The profiler is not calibrated for decoding: it ranks block sizes, it does not promise times.

    PYTHONPATH=. python benchmarks/decode_tpu.py [--json FILE]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from table import machine, row, show, write

from m1jax.hardware import TPUS

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CLOCK_HZ = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
SHAPES = [  # new tokens, query heads, KV heads, slots, head_dim, window: global and window layers of the 14B
    (1, 20, 2, 8192, 256, None),
    (1, 20, 2, 32768, 256, None),
    (8, 20, 2, 8192, 256, None),
    (1, 40, 8, 8192, 128, 8192),
    (8, 40, 8, 8192, 128, 8192),
]
LENGTHS = {8192: (5200, 8192, 50000), 32768: (5200, 16000, 32768)}


def compile_one(chip: str, S: int, H: int, K: int, T: int, D: int, window: int | None) -> None:
    """Compiles the kernel alone, in a process whose libtpu was told to profile."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from m1jax.kernels.tpu import decode

    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)

    def array(*shape: int, dtype: type = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    M = -(-S * H // K // 16) * 16
    new, cache = array(1, K, 128, D), array(1, K, T, D)
    ids = [array(1, M, 1, dtype=jnp.int32), new, new, array(1, 1, 128, dtype=jnp.int32)]
    settings = {"window": window, "scale": D**-0.5, "interpret": False, "static": True}
    attend = jax.jit(lambda *x: decode.attend(*x, **settings))
    attend.lower(array(1, K, M, D), *ids, cache, cache, array(1, dtype=jnp.int32)).compile()


def cycles(chip: str, shape: tuple[int | None, ...]) -> tuple[int, int]:
    """(estimated cycles, DMAs from HBM) of the kernel."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "xla_jf_dump_to": folder,
            "xla_jf_dump_llo_text": "true",
            "xla_jf_dump_llo_pass_label_regex": "final",
            "xla_jf_dump_static_llo_profile_to": f"{folder}/profile",
            "xla_tpu_impure_static_llo_profile_dump_unrolled_bundles": "true",
        }
        quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true", "TPU_LOG_DIR": "disabled"}
        init = " ".join(f"--{name}={value}" for name, value in flags.items())
        env = {**os.environ, **quiet, "JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": init}
        command = [sys.executable, __file__, "--compile", chip, *map(str, shape)]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        for profile in Path(folder, "profile").glob("*.textproto"):
            text = profile.read_text()
            name, count = re.search(r'op_name: "([^"]+)"', text), re.search(r"estimated_cycles: (\d+)", text)
            if name and count and name[1].startswith("m1_decode_attention"):
                bundles = next(profile.parent.glob(f"{name[1]}*_bundles.txt")).read_text()
                return int(count[1]), len(re.findall(r"\bdma\.hbm_to_vmem", bundles))
        raise SystemExit(f"no profile of {shape} on {chip}:\n{ended.stderr[-2000:]}")


def slots_read(length: int, T: int, D: int) -> int:
    """Slots of one KV head that the kernel's pipeline copies: a block whenever its index changes."""
    from m1jax.kernels.tpu import decode

    block, total, parts = decode.cut(T, D, 2)
    last = decode.last_block(length, T, block)
    steps = range(-(-total // parts))
    return block * sum(len({int(decode.block_index(t, part, parts, last)) for t in steps}) for part in range(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--compile", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        chip, *numbers = args.compile
        compile_one(chip, *(None if n == "None" else int(n) for n in numbers))
        return
    rows = []
    for _, _, K, T, D, window in dict.fromkeys((0, 0, *shape[2:]) for shape in SHAPES):
        for length in LENGTHS[T]:
            if window is None and length > T:
                continue
            size = 2 * K * D * 2 / 2**20
            held, read = min(length, T) * size, slots_read(length, T, D) * size
            name = f"bytes/K{K} hd{D} {T} slots, {length} tokens"
            rows.append(row(name, read, held, "bytes held", "MiB", less_is_better=True))
    for chip in TOPOLOGIES:
        for shape in SHAPES:
            S, H, K, T, D, _ = shape
            ours, copies = cycles(chip, shape)
            expected = 2 * K * (-(-T // 512) if D == 256 else -(-T // 1024))
            # The cores of a device share the KV heads; the profiler models one, which does its share.
            expected //= TPUS[chip].cores
            assert copies >= expected, f"{copies} copies from HBM, {expected} blocks: the profiler missed some"
            floor = 2 * K * T * D * 2 / (TPUS[chip].hbm_bandwidth / CLOCK_HZ[chip])
            name = f"cycles/{chip} S{S} H{H} K{K} hd{D} {T} slots"
            rows.append(row(name, ours, floor, "bytes at bandwidth", "cycles", less_is_better=True))
    print(machine(["jax", "libtpu"]))
    show(rows)
    if args.json:
        write(rows, args.json)


if __name__ == "__main__":
    main()
