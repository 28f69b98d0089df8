"""How many blocks of keys do the TPU attention kernels visit on real packed rows, and how many must they?

    python benchmarks/attention_packed.py --rows runs/quickstart/rows --row-lengths 8192 32768 --json out.json

`m1 pack` packed the rows; `--count` of each length are taken at even distances from all sources. The kernels, with the
blocks of kernels/tpu/tuning.py for `--chip` at the 14B's two layer kinds, run in Pallas's interpreter with one narrow
head and count the blocks that they execute. "must" is counted here from the definition, token by token: pairs of blocks
where any query sees any key. "triangle" is what a schedule of the causal or window mask alone visits, as jax's splash
attention does. "seen" is the share of the visited blocks' scores that some query does see: the price of whole blocks.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import table
from numpy.typing import NDArray

from m1jax import hardware
from m1jax.kernels import AttentionLayer, Rows
from m1jax.kernels.tpu import attention as tpu
from m1jax.kernels.tpu import schedule, tuning
from m1jax.rows.expand import expand
from m1jax.rows.manifest import Manifest, row_path
from m1jax.rows.store import RowStore

KINDS = {"global hd256": (256, None), "window 8192 hd128": (128, 8192)}
HEAD_DIM = 64


def real_rows(folder: Path, row_length: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segment ids and positions, (count, row_length) each."""
    manifest = Manifest.load(folder)
    all_rows = [
        (store, index)
        for source, entry in sorted(manifest.sources.items())
        for store in [RowStore(row_path(folder, row_length, source), entry.files[row_length].rows)]
        for index in range(len(store))
    ]
    chosen = [all_rows[i] for i in np.linspace(0, len(all_rows) - 1, count).astype(int)]
    arrays = expand([store[index] for store, index in chosen])
    return arrays["segment_ids"], arrays["positions"]


def visited(
    segments: NDArray[np.int32], positions: NDArray[np.int32], window: int | None, tiling: schedule.Tiling
) -> list[int]:
    """Blocks that the forward and the backward kernel count, of all rows together."""
    B, S = segments.shape
    shape = jax.ShapeDtypeStruct((B, S, 1, HEAD_DIM), jnp.bfloat16)
    x = [jnp.ones(shape.shape, shape.dtype)] * 3
    ones = jnp.ones((1, 2))
    layer = AttentionLayer(conv_k=ones, conv_v=ones, inv_freq=jnp.ones(HEAD_DIM // 2), window=window, scale=1.0)
    rows = Rows(positions=jnp.asarray(positions), segment_ids=jnp.asarray(segments))
    static, arrays = tpu.operands(*x, layer, rows, chip="v5p", tiling=tiling, counted=True, interpret=True)
    out, lse, keys, values, forward = jax.jit(lambda *x: tpu.run_forward(static, x, save=True))(*arrays)
    counts = jax.jit(lambda *x: tpu.run_backward(static, x[:-4], *x[-4:], (x[-4], x[-3]))[-1])(
        *arrays, out, lse, keys, values
    )
    return [int(forward.sum()), int(sum(count.sum() for count in counts))]


def least(segments: NDArray[np.int32], window: int | None, height: int) -> tuple[int, int, int]:
    """Blocks (of `height` tokens) that must be visited, blocks of the mask without documents, and scores seen."""
    B, S = segments.shape
    must = triangle = seen = 0
    key = np.arange(S)
    for start in range(0, S, height):
        query = np.arange(start, min(start + height, S))[:, None]
        mask = key <= query
        if window is not None:
            mask &= query - key < window
        width = np.arange(0, S, height)
        triangle += B * int(np.logical_or.reduceat(mask.any(0), width).sum())
        for row in segments:
            pairs = mask & (row[query] == row) & (row > 0)
            must += int(np.logical_or.reduceat(pairs.any(0), width).sum())
            seen += int(pairs.sum())
    return must, triangle, seen


def main() -> None:
    """Runs, prints, and writes --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--row-lengths", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--chip", choices=hardware.TPUS, default="v5p")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(table.machine(["jax"]))
    rows: list[table.Row] = []
    for row_length in args.row_lengths:
        segments, positions = real_rows(args.rows, row_length, args.count)
        documents = [int(row.max()) for row in segments]
        print(f"{args.count} rows of {row_length}: {documents} documents, fill {(segments > 0).mean():.3f}")
        for kind, (head_dim, window) in KINDS.items():
            tiling = tuning.tiling(args.chip, head_dim, row_length, args.count, jnp.bfloat16)
            height = tiling.forward.height
            must, triangle, seen = least(segments, window, height)
            counts = visited(segments, positions, window, tiling)
            for name, count in zip(("forward", "backward"), counts, strict=True):
                what = f"{name} {kind}/{row_length}, blocks of {height}"
                print(f"{what}: {count} visited, {must} must be, {seen / count / height**2:.1%} seen")
                rows.append(table.row(what, count, must, "must", "blocks", less_is_better=True))
                rows.append(table.row(what, count, triangle, "triangle", "blocks", less_is_better=True))
    table.show(rows)
    if args.json:
        table.write(rows, args.json)


if __name__ == "__main__":
    main()
