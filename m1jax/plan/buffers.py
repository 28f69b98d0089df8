"""The largest values that a compiled program holds in HBM, by name, from the compiler's buffer assignment."""

from dataclasses import dataclass
from typing import Any

from m1jax.plan.hlo import Instruction, Module, grouped, one

_ALLOCATED, _FREED, _SHARED = 0, 1, 2


@dataclass(frozen=True)
class Buffer:
    """A value in HBM: its shape on one device, where the program makes it, its bytes with the padding of tiles."""

    shape: str
    source: str
    bytes: int


def largest(module: Module, assignment: memoryview, count: int = 5) -> tuple[Buffer, ...]:
    """The largest among the arguments and the values that live when the temporaries are at their peak."""
    parts = grouped(assignment)
    instructions = {i.id: i for c in module.computations.values() for i in c.instructions.values()}
    sizes: dict[int, int] = {}
    makers: dict[int, Instruction] = {}
    in_hbm: set[int] = set()
    for entry in map(grouped, parts.get(1, ())):
        number = one(entry, 1)
        sizes[number] = one(entry, 2)
        makers[number] = instructions[one(grouped(entry[3][0]), 4)]
        if one(entry, 4) == 0:  # color: the memory space
            in_hbm.add(number)
    given = {
        one(grouped(assigned), 1)
        for allocation in map(grouped, parts.get(3, ()))
        if one(allocation, 5)
        for assigned in allocation.get(9, ())
    }
    alive = given | _at_peak(parts, sizes, in_hbm)
    found: dict[tuple[str, str], Buffer] = {}
    for number in sorted(alive & in_hbm):
        maker = makers[number]
        array = max(maker.arrays, key=lambda a: (a.bytes <= sizes[number], a.bytes), default=None)
        buffer = Buffer(str(array), source(maker.op_name) or maker.name, sizes[number])
        found.setdefault((buffer.source, buffer.shape), buffer)
    return tuple(sorted(found.values(), key=lambda buffer: -buffer.bytes)[:count])


def _at_peak(parts: dict[int, list[Any]], sizes: dict[int, int], in_hbm: set[int]) -> set[int]:
    """The values that live together when they are the most bytes, from the largest heap that the compiler simulated.

    A value that shares another's place (what a loop carries, say) stands for it: the place is held as long as any of
    its sharers lives.
    """
    best, peak = set[int](), 0
    for trace in map(grouped, parts.get(4, ())):
        place: dict[int, int] = {}
        sharers: dict[int, int] = {}
        now = 0
        for event in map(grouped, trace.get(1, ())):
            number, kind = one(event, 2), one(event, 1)
            if number not in in_hbm:
                continue
            if kind == _FREED:
                owner = place.get(number, -1)
                if owner in sharers:
                    sharers[owner] -= 1
                    if not sharers[owner]:
                        del sharers[owner]
                        now -= sizes[owner]
                continue
            owner = one(event, 5) if kind == _SHARED else number
            owner = place[number] = place.get(owner, owner)
            if owner not in sharers:
                now += sizes[owner]
            sharers[owner] = sharers.get(owner, 0) + 1
            if now > peak:
                best, peak = set(sharers), now
    return best


def source(op_name: str) -> str:
    """`jit(train_step)/jvp()/while/body/closed_call/mul` without what every name has."""
    skipped = ("jit(", "body", "closed_call", "while", "jvp()", "checkpoint", "shard_map", "transpose(jvp", "rematted")
    kept = "/".join(part for part in op_name.split("/") if not part.startswith(skipped))
    return ("backward " if "transpose(" in op_name else "") + kept
