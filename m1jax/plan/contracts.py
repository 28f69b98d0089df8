"""Compile contracts: what a program may need, written down, and what moved when it needs something else.

A contract is a small JSON of budgets, never the text of a program, which every release of a compiler changes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m1jax.plan.compiling import Facts

SLACK = 0.02
"""Share by which bytes may grow or shrink before a contract is broken; counts may not change."""
_DOT = re.compile(r"stablehlo\.dot_general.*: \(tensor<([^>]+)>, tensor<([^>]+)>\) -> tensor<([^>]+)>")
_KERNEL = re.compile(r'kernel_name = "([^"]+)"')


@dataclass(frozen=True)
class Lowered:
    """What the lowered program shows, in seconds and without a compiler."""

    fingerprint: str
    kernels: dict[str, int]
    """Calls of each Pallas kernel in the program's text; a loop's body counts once."""
    float32_products: tuple[str, ...]
    """Matrix products of two float32 operands, by shapes."""


@dataclass(frozen=True)
class Contract:
    """Budgets of one program; those of compilation are empty where only the lowering is held."""

    lowered: Lowered
    compiler: tuple[str, ...]
    hbm: int = 0
    collectives: dict[str, dict[str, float]] = field(default_factory=dict)
    """Count and bytes by kind and mesh axes."""
    kernels: dict[str, int] = field(default_factory=dict)
    """Runs of each Pallas kernel in a call."""
    whole_gathers: tuple[str, ...] = ()


def lowered(text: str, fingerprint: str) -> Lowered:
    """What the text of a lowered program shows."""
    kernels: dict[str, int] = {}
    for name in _KERNEL.findall(text):
        kernels[name] = kernels.get(name, 0) + 1
    products = {f"{a} by {b}" for a, b, _ in _DOT.findall(text) if a.endswith("xf32") and b.endswith("xf32")}
    return Lowered(fingerprint, kernels, tuple(sorted(products)))


def compiled(shown: Lowered, compiler: tuple[str, ...], facts: Facts) -> Contract:
    """The contract that a compiled program meets exactly."""
    collectives: dict[str, dict[str, float]] = {}
    for c in facts.collectives:
        key = f"{c.kind} over {c.axes}{' across slices' if c.crosses_slices else ''}"
        collectives[key] = {"count": c.count, "bytes": round(c.bytes)}
    return Contract(shown, compiler, facts.hbm, collectives, facts.kernels, facts.whole_gathers)


def differences(agreed: Contract, now: Contract, slack: float = SLACK) -> list[str]:
    """What moved, a sentence each, with both numbers; fingerprints are no budget and are not compared."""
    moved = [
        *_counts("kernel calls lowered", agreed.lowered.kernels, now.lowered.kernels),
        *(
            f"new float32 matrix product: {p}"
            for p in _new(agreed.lowered.float32_products, now.lowered.float32_products)
        ),
    ]
    if not agreed.hbm or not now.hbm:
        return moved
    if abs(now.hbm - agreed.hbm) > slack * agreed.hbm:
        moved.append(f"HBM: {_mib(agreed.hbm)} agreed, {_mib(now.hbm)} now ({now.hbm / agreed.hbm - 1:+.1%})")
    for key in sorted(agreed.collectives | now.collectives):
        nothing = {"count": 0, "bytes": 0}
        a, b = agreed.collectives.get(key, nothing), now.collectives.get(key, nothing)
        if a["count"] != b["count"]:
            moved.append(f"{key}: {a['count']:,} agreed, {b['count']:,} now")
        if abs(a["bytes"] - b["bytes"]) > slack * a["bytes"]:
            moved.append(f"{key}: {_mib(a['bytes'])} agreed, {_mib(b['bytes'])} now")
    moved += _counts("kernel runs", agreed.kernels, now.kernels)
    moved += [f"a whole stacked parameter is gathered: {g}" for g in _new(agreed.whole_gathers, now.whole_gathers)]
    return moved


def load(path: Path) -> Contract:
    """The contract in a file."""
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    shown = tree["lowered"]
    tree["lowered"] = Lowered(shown["fingerprint"], shown["kernels"], tuple(shown["float32_products"]))
    return Contract(**{**tree, "compiler": tuple(tree["compiler"]), "whole_gathers": tuple(tree["whole_gathers"])})


def _counts(what: str, agreed: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    return [
        f"{what}, {name}: {agreed.get(name, 0):,} agreed, {now.get(name, 0):,} now"
        for name in sorted({**agreed, **now})
        if agreed.get(name, 0) != now.get(name, 0)
    ]


def _new(agreed: tuple[str, ...], now: tuple[str, ...]) -> list[str]:
    return sorted(set(now) - set(agreed))


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB"
