"""Compiled programs, read from their serialised form: computations, instructions, loops with their trip counts.

The text of a large program cannot always be had (XLA fails to read back what it wrote), but XLA can dump its bytes
while it compiles: a protocol buffer (xla/service/hlo.proto), of which only the fields below are read.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# xla/xla_data.proto, PrimitiveType: name and bits of an element.
ELEMENTS = {
    1: ("pred", 8), 2: ("s8", 8), 3: ("s16", 16), 4: ("s32", 32), 5: ("s64", 64), 6: ("u8", 8), 7: ("u16", 16),
    8: ("u32", 32), 9: ("u64", 64), 10: ("f16", 16), 11: ("f32", 32), 12: ("f64", 64), 16: ("bf16", 16),
    21: ("s4", 4), 22: ("u4", 4), 19: ("f8e5m2", 8), 20: ("f8e4m3fn", 8),
}  # fmt: skip
_TUPLE = 13


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer: integers for numbers, memoryviews for everything with a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind == _BYTES:
            size, at = _varint(data, at)
            yield number, data[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
            yield number, int.from_bytes(data[at : at + size], "little")
            at += size
        else:
            raise ValueError(f"wire type {kind} at byte {at}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _integers(values: list[Any]) -> list[int]:
    """A repeated integer field, packed or not."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            numbers.append(number)
    return numbers


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace")


def grouped(data: memoryview) -> dict[int, list[Any]]:
    """All values of a protocol buffer by field number."""
    found: dict[int, list[Any]] = {}
    for number, value in fields(data):
        found.setdefault(number, []).append(value)
    return found


@dataclass(frozen=True)
class Array:
    """One array of a value: element type, dimensions, memory space (0 HBM, 1 VMEM, 5 the host)."""

    element: str
    bits: int
    dimensions: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> int:
        """Bytes without the padding of tiles."""
        return math.prod(self.dimensions) * self.bits // 8

    def __str__(self) -> str:
        return f"{self.element}[{','.join(map(str, self.dimensions))}]"


@dataclass(frozen=True)
class Instruction:
    """One instruction; what is rarely asked for is read when it is."""

    name: str
    opcode: str
    id: int
    operands: tuple[int, ...]
    called: tuple[int, ...]
    raw: dict[int, list[Any]] = field(repr=False)

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its value: one, or those of the tuple."""
        return tuple(_arrays(self.raw[3][0])) if 3 in self.raw else ()

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program."""
        return next((_text(v) for m in self.raw.get(7, ()) for n, v in fields(m) if n == 2), "")

    @property
    def target(self) -> str:
        """The function that a custom call calls."""
        return _text(self.raw[28][0]) if 28 in self.raw else ""

    @property
    def number(self) -> int | None:
        """The value of an integer constant."""
        for literal in self.raw.get(8, ()):
            parts = grouped(literal)
            for key in (4, 5, 6, 7):
                if key in parts:
                    return _integers(parts[key])[0]
            return 0  # a zero is not written
        return None

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The groups of device numbers that a collective runs in; for a permutation the pairs (source, target)."""
        if 52 in self.raw:
            pairs = [grouped(pair) for pair in self.raw[52]]
            return tuple((one(pair, 1), one(pair, 2)) for pair in pairs)
        if 49 in self.raw:
            return tuple(tuple(_integers(grouped(group).get(1, []))) for group in self.raw[49])
        if 92 in self.raw:
            return _iota_groups(self.raw[92][0])
        if 93 in self.raw:
            return _mesh_groups(self.raw[93][0])
        for devices in self.raw.get(87, ()):
            parts = grouped(devices)
            if 1 in parts:
                return tuple(tuple(_integers(grouped(group).get(1, []))) for group in parts[1])
            if 2 in parts:
                return _iota_groups(parts[2][0])
        return ()


def one(parts: dict[int, list[Any]], number: int) -> int:
    """The only value of a field, 0 (what is not written) where it is absent."""
    return parts[number][0] if number in parts else 0


def _arrays(data: memoryview) -> Iterator[Array]:
    parts = grouped(data)
    kind = one(parts, 2)
    if kind == _TUPLE:
        for inner in parts.get(4, ()):
            yield from _arrays(inner)
    elif kind in ELEMENTS:
        space = 0
        for layout in parts.get(5, ()):
            space = one(grouped(layout), 8)
        yield Array(*ELEMENTS[kind], tuple(_integers(parts.get(3, []))), space)


def _transposed(shape: list[int], order: list[int], rows: int) -> tuple[tuple[int, ...], ...]:
    """0 … n - 1 laid out as `shape`, its axes put in `order`, cut into `rows` groups."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    ids = [
        sum(index * strides[axis] for index, axis in zip(place, order, strict=True))
        for place in itertools.product(*(range(shape[axis]) for axis in order))
    ]
    size = len(ids) // rows
    return tuple(tuple(ids[i : i + size]) for i in range(0, len(ids), size))


def _iota_groups(data: memoryview) -> tuple[tuple[int, ...], ...]:
    parts = grouped(data)
    shape = _integers(parts.get(3, []))
    order = _integers(parts.get(4, [])) or list(range(len(shape)))
    return _transposed(shape, order, one(parts, 1))


def _mesh_groups(data: memoryview) -> tuple[tuple[int, ...], ...]:
    """Groups along named axes of a mesh; an axis may be cut into (pre, size, rest) and only `size` of it be named."""
    parts = grouped(data)
    mesh = grouped(parts[1][0])
    sizes = [one(grouped(axis), 2) for axis in mesh.get(1, ())]
    named: dict[int, tuple[int, int] | None] = {}
    for reference in parts.get(2, ()):
        entry = grouped(reference)
        inside = grouped(entry[2][0]) if 2 in entry else None
        named[one(entry, 1)] = None if inside is None else (one(inside, 1), one(inside, 2))
    shape: list[int] = []
    across: list[int] = []
    along: list[int] = []
    for axis, size in enumerate(sizes):
        cut = named.get(axis, (1, 1))
        if cut is None:
            along.append(len(shape))
            shape.append(size)
            continue
        before, length = cut
        for part, is_named in ((before, False), (length, True), (size // (before * length), False)):
            (along if is_named else across).append(len(shape))
            shape.append(part)
    rows = math.prod(shape[axis] for axis in across)
    groups = _transposed(shape, across + along, rows)
    ids = _integers(mesh.get(2, []))
    if 3 in mesh:  # the mesh's devices are themselves a transposed range
        order = grouped(mesh[3][0])
        dimensions = _integers(order.get(1, []))
        ids = list(_transposed(dimensions, _integers(order.get(2, [])) or list(range(len(dimensions))), 1)[0])
    return tuple(tuple(ids[i] for i in group) for group in groups) if ids else groups


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they run, by id."""

    name: str
    instructions: dict[int, Instruction]
    root: Instruction


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[int, Computation]
    entry: Computation

    def executed(self) -> Iterator[tuple[Instruction, int, Computation]]:
        """Every instruction that runs in one call of the program, with how often and where; fusions are entered.

        Of a conditional each branch counts as often as the conditional runs: a bound from above.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, computation: Computation, times: int) -> Iterator[tuple[Instruction, int, Computation]]:
        for instruction in computation.instructions.values():
            yield instruction, times, computation
            if instruction.opcode in ("async-update", "async-done", "reduce", "all-reduce", "sort", "scatter"):
                continue  # calls what its start calls, or arithmetic on scalars
            inner = times
            if instruction.opcode == "while":
                inner *= self.trips(instruction, computation)
            for called in instruction.called:
                yield from self._executed(self.computations[called], inner)

    def trips(self, loop: Instruction, where: Computation) -> int:
        """Iterations of a loop that counts up to a constant, from its condition; 1 where what ends it is data.

        `where` is the computation that contains it. The compiler may take the first iteration out of a loop, which
        then starts at 1.
        """
        condition = next(c for c in map(self.computations.__getitem__, loop.called) if _is_pred(c.root))
        numbers = [i.number for i in self._inside(condition) if i.opcode == "constant" and i.number is not None]
        end = max([n for n in numbers if 0 < n < 1 << 31], default=0)
        return end - self._start(loop, where, condition, end) if end else 1

    def _start(self, loop: Instruction, where: Computation, condition: Computation, end: int) -> int:
        """What the counter of a loop starts at; 0 where that is not a constant below `end`."""
        given = where.instructions.get(loop.operands[0])
        counters = [condition.instructions.get(i) for i in condition.root.operands]
        counter = next((i for i in counters if i is not None and i.opcode == "get-tuple-element"), None)
        if given is None or given.opcode != "tuple" or counter is None:
            return 0
        value = where.instructions.get(given.operands[one(counter.raw, 13)])
        while value is not None and value.opcode in ("copy", "bitcast"):
            value = where.instructions.get(value.operands[0])
        start = value.number if value is not None and value.opcode == "constant" else None
        return start if start is not None and 0 < start < end else 0

    def _inside(self, computation: Computation) -> Iterator[Instruction]:
        for instruction in computation.instructions.values():
            yield instruction
            for called in instruction.called:
                yield from self._inside(self.computations[called])


def _is_pred(instruction: Instruction) -> bool:
    return len(instruction.arrays) == 1 and str(instruction.arrays[0]) == "pred[]"


def read(data: bytes | memoryview) -> Module:
    """The module of an HloModuleProto."""
    computations: dict[int, Computation] = {}
    entry = 0
    for number, value in fields(memoryview(data)):
        if number == 6:
            entry = value
        elif number == 3:
            parts = grouped(value)
            instructions = {i.id: i for i in map(_instruction, parts.get(2, ()))}
            root = instructions[one(parts, 6)]
            computations[one(parts, 5)] = Computation(_text(parts[1][0]), instructions, root)
    return Module(computations, computations[entry])


def _instruction(data: memoryview) -> Instruction:
    raw = grouped(data)
    return Instruction(
        name=_text(raw[1][0]),
        opcode=_text(raw[2][0]),
        id=one(raw, 35),
        operands=tuple(_integers(raw.get(36, []))),
        called=tuple(_integers(raw.get(38, []))),
        raw=raw,
    )
