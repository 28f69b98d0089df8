"""The collectives of a compiled program: kind, mesh axis, how often in one call, and the bytes that they move."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from m1jax.plan.hlo import Array, Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind along the same mesh axes: `count` and the bytes a device receives, for a whole call."""

    kind: str
    axes: str
    count: int
    bytes: float
    crosses_slices: bool


def summary(module: Module, mesh_shape: Mapping[str, int], slices: int = 1) -> tuple[Collective, ...]:
    """All collectives of a call, loops multiplied in, most bytes first.

    A ring (or a torus, which is no better in bytes) of n devices lets each receive (n - 1) / n of what it gathers or
    scatters, and twice that of what it reduces to all (Thakur et al., 2005, "Optimization of Collective Communication
    Operations in MPICH"). `mesh_shape` are the mesh's axes in order; `replica`, the first, is what crosses slices.

    What the TPU compiler reduces among slices leaves the program as a send and comes back as a recv of as many bytes,
    whatever the number of slices: the hosts reduce between them. It is the least that a device receives over DCN.
    """
    found: dict[tuple[str, str, bool], list[float]] = {}
    for instruction, times, where in module.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind == "recv" and slices > 1:
            entry = found.setdefault((kind, next(iter(mesh_shape)), True), [0, 0.0])
            entry[0] += times
            entry[1] += times * max(array.bytes for array in instruction.arrays)
            continue
        if kind not in KINDS:
            continue
        groups = [group for group in instruction.groups if len(set(group)) > 1]
        size = max((len(group) for group in groups), default=1)
        if not groups and kind == "collective-permute":
            continue
        if not groups:
            size = math.prod(mesh_shape.values())
            groups = [tuple(range(size))]
        if kind == "all-reduce" and _is_scattered(where):
            kind = "reduce-scatter"
        axes, crosses = _axes(groups, mesh_shape, slices)
        entry = found.setdefault((kind, axes, crosses), [0, 0.0])
        entry[0] += times
        entry[1] += times * _received(kind, instruction, size)
    parts = [Collective(kind, axes, int(n), moved, far) for (kind, axes, far), (n, moved) in found.items()]
    return tuple(sorted(parts, key=lambda c: -c.bytes))


def whole_gathers(module: Module, stacked: Iterable[tuple[int, ...]]) -> list[str]:
    """All-gathers whose result is as large as one of these stacked parameters: layers that should come one by one."""
    sizes = {math.prod(shape) for shape in stacked}
    return sorted(
        f"{array} by {instruction.op_name}"
        for instruction, _, _ in module.executed()
        if instruction.opcode.removesuffix("-start") == "all-gather"
        for array in [max(instruction.arrays, key=lambda a: a.bytes)]
        if math.prod(array.dimensions) in sizes and len(array.dimensions) > 1
    )


def _is_scattered(where: Computation) -> bool:
    """Whether an all-reduce is one fusion with the slice that each device keeps of it: TPUs reduce-scatter so."""
    return "all-reduce-scatter" in where.name


def _received(kind: str, instruction: Instruction, size: int) -> float:
    arrays: tuple[Array, ...] = instruction.arrays
    if instruction.opcode.endswith("-start"):  # (operands, results, …)
        arrays = (max(arrays, key=lambda a: a.bytes),)
    total = sum(array.bytes for array in arrays)
    share = (size - 1) / size
    if kind == "all-reduce":
        return 2 * share * total
    if kind == "collective-permute":
        return total
    if kind == "reduce-scatter" and instruction.opcode.startswith("reduce-scatter"):
        return share * size * total if not instruction.opcode.endswith("-start") else share * total
    return share * total


def _axes(groups: list[tuple[int, ...]], mesh_shape: Mapping[str, int], slices: int) -> tuple[str, bool]:
    """Mesh axes along which a group's members differ, and whether they are in several slices."""
    names, sizes = list(mesh_shape), list(mesh_shape.values())
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    varying: set[str] = set()
    crosses = False
    for group in groups:
        places = [[device // stride % size for stride, size in zip(strides, sizes, strict=True)] for device in group]
        varying |= {name for i, name in enumerate(names) if len({place[i] for place in places}) > 1}
        crosses |= slices > 1 and len({place[0] * slices // sizes[0] for place in places}) > 1
    return "+".join(name for name in names if name in varying), crosses
