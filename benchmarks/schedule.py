"""What the instructions of a TPU kernel ask of each unit, read from what libtpu dumps beside a compilation."""

import re
from pathlib import Path

LEAST_BUNDLES = 100
UNITS = ("MATMUL", "MATPUSH", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "VSTORE")


def regions(dump: Path, kernel: str) -> list[tuple[str, int, dict[str, float]]]:
    """(kind, bundles, share of each unit's slots that is taken) of the stretches of a kernel's code between branches.

    A loop's body is its own stretch; stretches shorter than LEAST_BUNDLES are left out. A bundle is issued in a cycle;
    a matrix instruction takes its unit's slot for as long as the unit is busy with it.

    Args:
        dump: folder of `--xla_jf_dump_to`.
        kernel: what the kernel's name begins with.
    """
    table = next(dump.glob(f"*-{kernel}*-final_hlo-static-per-bundle-utilization.txt")).read_text().splitlines()
    names = [name.strip() for name in table[1].split(",")]
    slots = [int(word) for word in table[2].split()]
    taken = [[int(word) for word in line.split()] for line in table[4:] if line.strip()]
    found: list[tuple[str, int, int]] = []
    depth, opened = -1, True
    bundles = 0
    with open(next(dump.glob(f"*-{kernel}*-final_bundles.txt"))) as listing:
        for line in listing:
            match = re.match(r"\s*0x[0-9a-f]+\s+(LB|LH|LE|PB|PF)?\s*:\s*(>*)\s*\{", line)
            if not match:
                continue
            if opened or match[1] or len(match[2]) != depth or "Start region" in line:
                depth = len(match[2])
                found.append(("loop" if match[1] == "LB" and depth > 1 else "straight", bundles, bundles))
            found[-1] = (*found[-1][:2], bundles)
            opened = "End region" in line
            bundles += 1
    rows = []
    for kind, start, end in found:
        count = end - start + 1
        if count >= LEAST_BUNDLES:
            sums = [sum(column) for column in zip(*taken[start : end + 1], strict=True)]
            shares = {name: total / n / count for name, total, n in zip(names, sums, slots, strict=True)}
            rows.append((kind, count, {unit: shares[unit] for unit in UNITS}))
    return rows


def show(rows: list[tuple[str, int, dict[str, float]]]) -> None:
    """Prints them as a markdown table."""
    print(f"| code | bundles | {' | '.join(UNITS)} |\n|{'---|' * (2 + len(UNITS))}")
    for kind, count, shares in rows:
        print(f"| {kind} | {count:,} | {' | '.join(f'{share:.0%}' for share in shares.values())} |")
