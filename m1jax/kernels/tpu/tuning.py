"""Block sizes by chip, head_dim and length: a table that `benchmarks/attention_tpu.py --tune` measures."""

from typing import Any

import jax
import jax.numpy as jnp

from m1jax.hardware import MIB, TPUS, by_kind
from m1jax.kernels.tpu.schedule import Blocks, Tiling

_BLOCKS: dict[tuple[str, int], tuple[Blocks, Blocks]] = {
    ("v6e", 128): (Blocks(1024, 256, heads=5), Blocks(1024, 256)),
    ("v6e", 256): (Blocks(1024, 256, heads=2), Blocks(1024, 256)),
}
"""(chip, head_dim): forward and backward; both have the same height."""
_DEFAULT = Blocks(1024, 256), Blocks(1024, 256)


def chip() -> str:
    """The chip that is being compiled for: the mesh's in `use_abstract_mesh` or shard_map, else the first device's."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    kind = getattr(device, "device_kind", None) or jax.devices()[0].device_kind
    found = by_kind(kind)
    return found.name if found else kind


def tiling(chip: str, head_dim: int, keys: int, pairs: int, dtype: Any) -> Tiling:
    """Blocks for `keys` tokens and `pairs` rows x KV heads on a chip."""
    forward, backward = _BLOCKS.get((chip, head_dim), _DEFAULT)
    known = TPUS.get(chip)
    cores = 2 if known and known.cores == 2 and pairs % 2 else 1
    # Short rows take smaller blocks rather than much padding.
    height = min(forward.height, -(-keys // (128 * cores)) * 128)
    while height & (height - 1):
        height += height & -height
    panels = -(-keys // (height * cores))
    itemsize = jnp.dtype(dtype).itemsize
    capacity = known.vmem if known else 64 * MIB
    # A key's share in the backward kernel: prepared K, its transpose and V, and two sums in float32.
    share = head_dim * (3 * itemsize + 8)
    # Streams and tiles: the compiler asks for up to 15 MiB in bfloat16, and 38 where two cores share: a panel has two
    # blocks of keys then, whose gradients are float32 parts.
    streams = (10 * itemsize + 18 * (cores - 1) + 8 * (forward.heads - 1)) * MIB
    room = min(int(capacity * 0.55), int(capacity * 0.9) - streams)
    chunks = min(panels, max(1, -(-panels * height * cores * share // max(1, room))))
    panels = -(-panels // chunks) * chunks
    tokens = panels * height * cores
    resident = max(2 * tokens * head_dim * itemsize, tokens // chunks * share)
    return Tiling(
        forward=_fitted(forward, height),
        backward=_fitted(backward, height),
        cores=cores,
        keys=tokens,
        chunks=chunks,
        # XLA may reserve as much again, so ask for what is needed.
        vmem_bytes=min(resident + streams, int(capacity * 0.9)),
    )


def _fitted(blocks: Blocks, height: int) -> Blocks:
    return Blocks(height, min(height, blocks.keys), blocks.heads)
