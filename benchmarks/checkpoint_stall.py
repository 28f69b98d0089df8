"""What saving costs the steps, at quickstart scale: the same steps with and without a checkpoint, in turn, in one run.

    python benchmarks/checkpoint_stall.py --json stall.json

A window is as many steps as `--every` lies between two checkpoints. Measured: how long `save` holds the loop up, and
how much slower the steps behind it are while the arrays are compressed and written. Row: seconds of a window without
saving (ours, with saving) as a ratio; 1.00 is no cost, the aim is at least 0.95.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import table
from m1jax import objectives
from m1jax.config import file as config_file
from m1jax.config import to_dict
from m1jax.parallel import jax_setup, rules
from m1jax.parallel import mesh as meshes
from m1jax.train import program as programs
from m1jax.train.checkpoint.checkpoints import Checkpoints
from m1jax.train.checkpoint.folder import Meta


def batch_of(rows: int, length: int, vocab: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, vocab, (rows, length), np.int32)
    return {
        "tokens": tokens,
        "targets": tokens,
        "segment_ids": np.ones_like(tokens),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
        "weights": np.ones(tokens.shape, np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--every", type=int, help="steps between two checkpoints (default: the config's)")
    parser.add_argument("--steps", type=int, default=12, help="steps timed after a save, and as many without one")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", help="write the rows")
    args = parser.parse_args()
    jax_setup.prepare()
    config = config_file.load(args.config)
    every, stage = args.every or config.train.checkpoint_every, config.stages[0]
    mesh = meshes.make(config.mesh)
    program = programs.build(config, objectives.make(config, mesh), mesh)
    state = program.create()
    host = batch_of(stage.global_batch, stage.row_length, config.model.vocab_size)
    batch = jax.device_put(host, rules.batch_sharding(mesh))
    scalars = programs.stage_scalars(stage)
    blocked, plain, behind, written = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", keep=2)
        meta = Meta(run=to_dict(config), curriculum={}, versions={})
        for turn in range(args.rounds + 1):  # the first compiles
            for saving in (False, True):
                begun = time.perf_counter()
                if saving:
                    checkpoints.save(state, meta)
                    saved = time.perf_counter() - begun
                begun = time.perf_counter()
                for _ in range(args.steps):
                    state, metrics = program.step(state, batch, scalars)
                jax.block_until_ready(metrics)
                seconds = time.perf_counter() - begun
                checkpoints.wait()
                if turn and saving:
                    blocked.append(saved)
                    behind.append(seconds)
                    written.append(time.perf_counter() - begun)
                elif turn:
                    plain.append(seconds)
        checkpoints.close()
    step = statistics.median(plain) / args.steps
    held, slower = statistics.median(blocked), statistics.median(behind) - statistics.median(plain)
    window = every * step
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    print(table.machine(["jax", "orbax-checkpoint"]), f"load {os.getloadavg()[0]:.1f}")
    print(
        f"{size:.0f} MB of state, {step * 1e3:.0f} ms a step; save holds the loop up {held * 1e3:.0f} ms, the "
        f"{args.steps} steps behind it take {slower * 1e3:+.0f} ms; written after {statistics.median(written):.2f} s"
    )
    speed = window / (window + held + max(slower, 0))
    rows = [table.row(f"window/{every} steps", speed, 1.0, "without saving", "relative speed")]
    table.show(rows)
    if args.json:
        table.write(rows, args.json)


if __name__ == "__main__":
    main()
