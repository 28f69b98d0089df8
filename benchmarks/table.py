"""What every benchmark prints and writes: the machine, memory, a table, and rows of JSON."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
"""{"name": "operation/condition", "ours": x, "peer": y, "peer_name": "…", "unit": "…", "ratio": r}, r > 1: we lead."""


def row(name: str, ours: float, peer: float, peer_name: str, unit: str, *, less_is_better: bool = False) -> Row:
    """A row with its ratio."""
    ratio = peer / ours if less_is_better else ours / peer
    return {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ratio}


def machine(packages: Iterable[str] = ()) -> str:
    """Processor, cores, Python and the versions of packages, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    processor = ", ".join(sorted(models)) or platform.processor() or platform.machine()
    return "; ".join([f"{processor}, {os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])


def peak(pid: int) -> float:
    """The most that a process has had resident, GiB, since its start or `count_again`; Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def count_again(pid: int) -> None:
    """Lets the peak of a process begin again from what it has resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def show(rows: Sequence[Row]) -> None:
    """Prints the rows as a markdown table."""
    print("| what | ours | peer | peer's name | unit | ratio |\n|---|---|---|---|---|---|")
    for entry in rows:
        values = f"{entry['ours']:.4g} | {entry['peer']:.4g} | {entry['peer_name']} | {entry['unit']}"
        print(f"| {entry['name']} | {values} | {entry['ratio']:.2f} |")


def write(rows: Sequence[Row], path: str | Path) -> None:
    """Writes the rows as JSON."""
    Path(path).write_text(json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
