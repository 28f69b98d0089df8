"""The speed of a mesh's devices, with results checked: a matrix product on each, a collective along each axis."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m1jax.hardware import by_kind
from m1jax.parallel.mesh import AXES

REPEATS = 5


def seconds(call: Callable[[], Any]) -> float:
    """Median wall time of a call in seconds, after one that compiles; waits for its devices."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def has_peak(device: jax.Device) -> bool:
    """True where `peak_flops` gives a number: on CPUs and on the chips of m1jax/hardware.py."""
    return device.platform == "cpu" or by_kind(device.device_kind) is not None


def peak_flops(device: jax.Device, dtype: str) -> float | None:
    """Peak FLOP/s of one device: the published one (bfloat16, dense), measured on a CPU, None for an unknown chip.

    On a CPU it is the best of five square products in `dtype`, over the devices that share the machine.
    """
    if device.platform != "cpu":
        chip = by_kind(device.device_kind)
        return chip.flops_per_device if chip else None
    size = 1536
    with jax.default_device(device):
        a = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x: x @ x)
        product(a).block_until_ready()
        best = float("inf")
        for _ in range(REPEATS):
            start = time.perf_counter()
            product(a).block_until_ready()
            best = min(best, time.perf_counter() - start)
    # Virtual CPU devices share the cores that the product above had for itself.
    return 2 * size**3 / best / jax.local_device_count()


def product(device: jax.Device, size: int, dtype: str) -> tuple[float, bool]:
    """(FLOP/s, right) of a size × size matrix product on one device.

    The factors are small whole numbers, whose product every dtype accumulates exactly in float32: any difference is a
    broken device, not rounding.
    """
    rows, columns = np.arange(size) % 7 - 3, np.arange(size) % 5 - 1
    left, right = rows[:, None] * (1 + columns[None] % 2), columns[:, None] * (1 + rows[None] % 2)
    # Both are outer products: so is their product, times an inner sum (8 for every five columns).
    inner = int(np.sum((1 + columns % 2) * columns))
    expected = inner * rows[:, None] * (1 + rows[None] % 2)
    a, b = (jax.device_put(jnp.asarray(factor, dtype), device) for factor in (left, right))
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    found = np.asarray(multiply(a, b))
    # A device that runs at its peak needs many products in one call, or the call itself would be measured.
    chain = 16 if device.platform != "cpu" else 1

    @jax.jit
    def many(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.fori_loop(0, chain, lambda _, x: (multiply(x, b) * 0.5).astype(a.dtype), a)

    return 2.0 * size**3 * chain / seconds(lambda: many(a, b)), bool(np.array_equal(found, expected))


def collective(mesh: Mesh, axis: str, bytes_a_device: int) -> tuple[float, bool]:
    """(bytes/s a device, right) of an all-reduce of float32 along one mesh axis, all other axes busy with the same.

    Counts the bytes that a device contributes over the time of the whole; a ring of n sends 2 (n - 1) / n of them.
    """
    count = max(1, bytes_a_device // 4)
    shape = (*(mesh.shape[name] for name in AXES), count)
    spec = PartitionSpec(*AXES, None)
    sharding = NamedSharding(mesh, spec)

    def own(index: Any) -> np.ndarray:
        place = index[AXES.index(axis)].start or 0
        return np.full((1,) * len(AXES) + (count,), place + 1, np.float32)

    values = jax.make_array_from_callback(shape, sharding, own)
    reduce = jax.jit(
        jax.shard_map(lambda x: lax.psum(x, axis), mesh=mesh, in_specs=spec, out_specs=_without(axis), check_vma=False)
    )
    total = mesh.shape[axis] * (mesh.shape[axis] + 1) / 2
    right = all(bool(np.all(np.asarray(shard.data) == total)) for shard in reduce(values).addressable_shards)
    return 4 * count / seconds(lambda: reduce(values)), right


def _without(axis: str) -> PartitionSpec:
    return PartitionSpec(*(None if name == axis else name for name in AXES), None)
