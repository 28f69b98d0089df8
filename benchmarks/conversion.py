"""How fast and in how much memory checkpoints travel: `m1 import` and `m1 export` beside copying the same files.

    python benchmarks/conversion.py --folder /tmp/conversion [--layers 6] [--json FILE]

A random bfloat16 checkpoint of the 14B's shapes, with fewer layers, is written in shards. Then, in turns and `--rounds`
times: shutil.copy of its files, import, export. All end with os.sync(), so that the bytes are on the disk for each of
them; the import and the export are whole processes, their start included. Medians.

Memory, sampled every 10 ms from /proc/PID/status of the command's process: RssAnon is what it owns (buffers, heap, the
libraries' own memory); VmHWM is the kernel's own peak of all resident pages, those of files mapped into memory
included. The bound is RssAnon at most 1 GiB above the largest Orbax leaf (import) or the largest tensor (export).
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import table
from safetensors.numpy import save_file

from m1jax.config import ModelConfig
from m1jax.convert import config_json
from m1jax.convert import table as tensors

GIB = 2**30
PROGRAM = [sys.executable, "-c", "import sys; from m1jax.verbs import main; sys.exit(main())"]


@dataclass(frozen=True)
class Measured:
    """One process, or one copy; memory in bytes."""

    seconds: float
    anonymous: int = 0
    resident: int = 0


def config_of(layers: int, scale: int) -> ModelConfig:
    """The 14B with fewer layers, its vocabulary and FFN divided by `scale`."""
    return ModelConfig(
        vocab_size=133_120 // scale,
        hidden=5120,
        ffn=17_408 // scale,
        num_layers=layers,
        num_heads=20,
        num_kv_heads=2,
        window_num_heads=40,
        window_num_kv_heads=8,
        window=8192,
        norm_eps=1e-6,
        init_std=0.02,
        max_positions=32_768,
    )


def make(folder: Path, config: ModelConfig, shard_bytes: int) -> None:
    """Writes a random checkpoint with the library that everybody writes it with."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    (folder / "config.json").write_text(json.dumps(config_json.to_json(config, 1e6, "bfloat16", {"eos_token_id": 2})))
    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}

    def flush() -> None:
        name = f"part-{len(set(weight_map.values())):05}.safetensors"
        save_file(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for entry in tensors.entries(config):
        # Signs and mantissas at random, exponents as those of weights have: as incompressible as real ones.
        bits = rng.integers(0, 2**16, entry.shape, np.uint16) & np.uint16(0x83FF) | np.uint16(0x3C00)
        if shard and sum(value.nbytes for value in shard.values()) + bits.nbytes > shard_bytes:
            flush()
        shard[entry.name] = bits.view(ml_dtypes.bfloat16)
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def run(command: list[str]) -> Measured:
    """A process from its start to its bytes being on the disk."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = {"RssAnon": 0, "VmHWM": 0}
    while process.poll() is None:
        # The process may have ended meanwhile.
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]) * 1024)
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {process.returncode}")
    os.sync()
    return Measured(time.perf_counter() - started, peak["RssAnon"], peak["VmHWM"])


def copy(source: Path, target: Path) -> Measured:
    """shutil.copy of every file."""
    started = time.perf_counter()
    target.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copy(path, target / path.name)
    os.sync()
    return Measured(time.perf_counter() - started)


def rounds(folder: Path, count: int) -> dict[str, list[Measured]]:
    """Copy, import, export, so many times; every file read was read before, so that all find it in the page cache."""
    source, ours = folder / "source", folder / "ours"
    commands = {
        "import": [*PROGRAM, "import", "--from", str(source), "--out", str(ours)],
        "export": [*PROGRAM, "export", "--model", str(ours), "--out", str(folder / "exported"), "--shard-size", "2GB"],
    }
    found: dict[str, list[Measured]] = {"copy": [], **{name: [] for name in commands}}
    for _ in range(count):
        for result in ("copied", "ours", "exported"):
            shutil.rmtree(folder / result, ignore_errors=True)
        os.sync()
        found["copy"].append(copy(source, folder / "copied"))
        for name, command in commands.items():
            found[name].append(run(command))
    return found


def main() -> None:
    """Measures, prints the table, checks that nothing was lost, and cleans up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-conversion"), help="room for four copies")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--scale", type=int, default=1, help="divides vocabulary and FFN, for a quick try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = config_of(args.layers, args.scale)
    shutil.rmtree(args.folder, ignore_errors=True)
    try:
        make(args.folder / "source", config, 2 * 10**9)
        size = sum(path.stat().st_size for path in (args.folder / "source").iterdir())
        leaf = 2 * max(int(np.prod(leaf.shape)) for leaf in tensors.leaves(config))
        tensor = 2 * max(int(np.prod(entry.shape)) for entry in tensors.entries(config))
        found = rounds(args.folder, args.rounds)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print(f"{size / 1e9:.2f} GB in bfloat16, {config.num_parameters:,} parameters, {args.layers} layers.")
    print(f"{table.machine(('jax', 'orbax-checkpoint', 'tensorstore', 'safetensors'))}; medians of {args.rounds}.\n")
    copied = statistics.median(one.seconds for one in found["copy"])
    rows = []
    for verb, name, largest in (("import", "Orbax leaf", leaf), ("export", "tensor", tensor)):
        seconds = statistics.median(one.seconds for one in found[verb])
        anonymous = max(one.anonymous for one in found[verb])
        rows.append(table.row(f"{verb}/time", seconds, 2 * copied, "twice shutil.copy", "s", less_is_better=True))
        bound = (largest + GIB) / GIB
        peer = f"largest {name} + 1 GiB"
        rows.append(table.row(f"{verb}/peak memory", anonymous / GIB, bound, peer, "GiB", less_is_better=True))
        print(f"{verb}: VmHWM at most {max(one.resident for one in found[verb]) / GIB:.2f} GiB")
    print(f"copy: {copied:.2f} s\n")
    table.show(rows)
    if args.json:
        table.write(rows, args.json)


if __name__ == "__main__":
    main()
