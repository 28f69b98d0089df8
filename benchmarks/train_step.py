"""How fast is a training step on this machine's CPU, beside the same model and step written plainly in PyTorch?

Each side is a process with as many threads as there are cores; all start from the same parameters and tokens, their
first losses must agree, and their steps take turns, so that what else the machine does strikes all alike. All have
their memory in large pages, as `m1` takes it (m1jax/verbs/program.py): PyTorch gains by it too. Tokens a second are of
the median step; compilation is left out, and the first step of each turn: after a pause of ten seconds a step took a
fifth longer here, because the machine had taken freed memory back. Memory is the most that a side's process had
resident, compilation included. Rows hold one document each. An earlier checkout of m1jax, with a Python of its own, can
be a side too.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --before ../before ../before/.venv/bin/python --peers compile
    python benchmarks/train_step.py --profile --sizes 46M --dtypes float32 --lengths 1024   # what our step spends where
"""

import argparse
import collections
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sides import ask
from table import machine, peak, row, show, write

PEERS = {"eager": "PyTorch eager", "compile": "PyTorch torch.compile"}
BEFORE = "before"
COMMON = {"norm_eps": 1e-6, "init_std": 0.02, "max_positions": 8192, "window": 1024}
SIZES = {
    "46M": {"vocab_size": 16384, "hidden": 512, "ffn": 1408, "num_layers": 10, "num_heads": 4, "num_kv_heads": 2,
            "window_num_heads": 8, "window_num_kv_heads": 4},
    "153M": {"vocab_size": 32768, "hidden": 768, "ffn": 2048, "num_layers": 16, "num_heads": 6, "num_kv_heads": 2,
             "window_num_heads": 12, "window_num_kv_heads": 4},
}  # fmt: skip
BASE, RATE = 1e5, 1e-4
# bfloat16 keeps 8 bits: two programs that round in other places agree to about a thousandth of a loss near 10.
AGREE = {"float32": 1e-4, "bfloat16": 2e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--turns", type=int, default=2, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn; the median is of all turns")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--before", nargs=2, metavar=("CHECKOUT", "PYTHON"), help="an earlier m1jax beside ours")
    parser.add_argument("--profile", action="store_true", help="our step alone, its seconds by kind of operation")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args.side, json.loads(args.cell))
        return
    rows = []
    for size in args.sizes:
        for dtype in args.dtypes:
            for length in args.lengths:
                if args.profile:
                    profile(size, dtype, length, args)
                else:
                    rows += compare(size, dtype, length, args)
    if args.profile:
        return
    print(machine(["jax", "torch"]) + f"; load before and after: {os.getloadavg()[0]:.1f}\n")
    show(rows)
    if args.json:
        write(rows, args.json)


def compare(size: str, dtype: str, length: int, args: argparse.Namespace) -> list[Any]:
    """Rows of one cell: ours beside each peer."""
    sides = ["m1jax", *args.peers, *([BEFORE] if args.before else [])]
    with tempfile.TemporaryDirectory() as scratch:
        cell = written(size, dtype, length, args, scratch)
        processes: list[Any] = []
        try:
            for side in sides:  # ours first: it writes the parameters that the peers read
                processes.append(earlier(args.before, cell) if side == BEFORE else start(side, cell))
                ask(processes[-1])
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            losses: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(args.turns):
                for side, process in zip(sides, processes, strict=True):
                    answers = [ask(process, "step") for _ in range(args.steps + 1)]
                    losses[side] += [loss for loss, _ in answers]
                    seconds[side] += [taken for _, taken in answers[1:]]
            memory = {side: peak(process.pid) for side, process in zip(sides, processes, strict=True)}
        finally:
            for process in processes:
                process.kill()
    for side in sides:
        if abs(losses[side][0] - losses["m1jax"][0]) > AGREE[dtype] * losses["m1jax"][0]:
            raise SystemExit(f"{side} computes another loss: {losses[side]} against {losses['m1jax']}")
    speed = {side: args.tokens / statistics.median(taken) for side, taken in seconds.items()}
    print(f"{size} {dtype} {length}: {speed}, {memory}", file=sys.stderr)
    of = f"{size}, {dtype}, rows of {length}"
    names = PEERS | {BEFORE: "m1jax before"}
    return [
        entry
        for side in sides[1:]
        for entry in (
            row(f"train step/{of}", speed["m1jax"], speed[side], names[side], "token/s"),
            row(f"peak memory/{of}", memory["m1jax"], memory[side], names[side], "GiB", less_is_better=True),
        )
    ]


def profile(size: str, dtype: str, length: int, args: argparse.Namespace) -> None:
    """Prints what a step of ours spends by kind of operation, after two that compile and warm."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_enable_xprof_traceme=true"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    with tempfile.TemporaryDirectory() as scratch:
        step = open_m1jax("m1jax", json.loads(written(size, dtype, length, args, scratch)))
        step(), step()
        begun, cpu = time.perf_counter(), time.process_time()
        with jax.profiler.trace(scratch):
            step()
            wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
        (file,) = Path(scratch).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        seconds: collections.Counter[str] = collections.Counter()
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            kind = re.sub(r"[.\d]+$", "", event.name)
            if re.fullmatch(r"[a-z_\-]+", kind) and kind not in ("while", "call", "conditional"):
                seconds[kind] += event.duration_ns / 1e9
    total = sum(seconds.values())
    print(f"{size} {dtype}, rows of {length}: {wall:.1f} s, {cpu:.1f} s of CPU time; operations, summed over threads:")
    for kind, spent in seconds.most_common(10):
        print(f"  {spent:7.2f} s  {spent / total:4.0%}  {kind}")
    print(f"{machine(['jax'])}; load {os.getloadavg()[0]:.1f}")


def written(size: str, dtype: str, length: int, args: argparse.Namespace, folder: str) -> str:
    """A cell as its sides are told of it, its tokens written into a folder."""
    settings = {**SIZES[size], **COMMON}
    tokens = np.random.default_rng(0).integers(0, settings["vocab_size"], (args.tokens // length, length + 1))
    np.save(Path(folder) / "tokens.npy", tokens)
    return json.dumps({"settings": settings, "dtype": dtype, "folder": folder})


def start(side: str, cell: str, checkout: Path = Path(__file__).parents[1], python: str = sys.executable) -> Any:
    """A side's process."""
    threads = str(os.cpu_count())
    environment = os.environ | {"OMP_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment["PYTHONPATH"] = str(checkout)
    command = [python, str(checkout / "benchmarks" / "train_step.py"), "--side", side, "--cell", cell]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def earlier(before: tuple[str, str], cell: str) -> Any:
    """The process of an earlier checkout, with a folder of its own: its parameters are written there."""
    told = json.loads(cell)
    folder = Path(told["folder"]) / BEFORE
    folder.mkdir()
    shutil.copy(folder.parent / "tokens.npy", folder)
    checkout, python = (Path(path).absolute() for path in before)
    return start("m1jax", json.dumps(told | {"folder": str(folder)}), checkout, str(python))


def serve(side: str, cell: dict[str, Any]) -> None:
    """Says that it is ready, then takes a step for every line and answers [loss, seconds]."""
    run = {"m1jax": open_m1jax, "eager": open_torch, "compile": open_torch}[side](side, cell)
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        loss = run()
        print(json.dumps([loss, time.perf_counter() - begun]), flush=True)


def open_torch(side: str, cell: dict[str, Any]) -> Callable[[], float]:
    """PyTorch's step."""
    import torch
    import torch_train

    torch.set_num_threads(os.cpu_count() or 1)
    folder = Path(cell["folder"])
    return torch_train.open_step(
        cell["settings"],
        np.load(folder / "parameters.npz"),
        np.load(folder / "tokens.npy"),
        base=BASE,
        dtype=cell["dtype"],
        compiled=side == "compile",
        rate=RATE,
    )


def open_m1jax(side: str, cell: dict[str, Any]) -> Callable[[], float]:
    """Our step, as `m1 train` runs it; writes the parameters it starts from."""
    import jax

    from m1jax import model, objectives
    from m1jax.config import file as config_file
    from m1jax.parallel import mesh as meshes
    from m1jax.train import program
    from m1jax.train.objective import StageScalars

    settings = {**cell["settings"], "compute_dtype": cell["dtype"]}
    folder = Path(cell["folder"])
    tokens = np.load(folder / "tokens.npy").astype(np.int32)
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    config = config_file.load(
        "quickstart",
        [
            *(f"model.{name}={value}" for name, value in settings.items()),
            *(f"stages.{i}.learning_rate.{end}={RATE}" for i in range(3) for end in ("start", "end")),
            "stages.0.learning_rate.warmup_steps=0",
            "train.unroll=8",
        ],
    )
    mesh = meshes.make(config.mesh)
    built = program.build(config, objectives.make(config, mesh), mesh)
    params = model.create(config.model, 0)[1]
    flat = jax.tree.leaves_with_path(model.unrolled(config.model, params)[1])
    np.savez(
        folder / "parameters.npz",
        **{jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat},
    )
    state = built.begin(params)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((rows, length), np.float32),
        "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
    }
    batch = jax.device_put(batch)

    def step() -> float:
        nonlocal state
        state, metrics = built.step(state, batch, StageScalars(np.float32(BASE), np.bool_(True)))
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        return loss

    return step


if __name__ == "__main__":
    main()
