"""What does an installation take: seconds, MB to download, MB on disk, and which packages are heavy?

    python benchmarks/installation.py                   # what `make quickstart` installs
    python benchmarks/installation.py --extra data      # with seqio, which brings TensorFlow

A fresh environment in a temporary folder, with the versions of constraints/. Seconds depend on the registry.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from table import machine, row, show, write

HERE = Path(__file__).parents[1]
SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", default="quickstart", help="of pyproject.toml; empty: none")
    parser.add_argument("--against", default="data", help="another extra to compare with")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    ours, peer = (installed(extra) for extra in (args.extra, args.against))
    print(machine() + "\n")
    rows = [
        row(f"installation/{what}", mine, theirs, f"with extra {args.against!r}", unit, less_is_better=True)
        for (what, unit), mine, theirs in zip(
            (("download", "MB"), ("on disk", "MB"), ("download and installation", "s")), ours[:3], peer[:3], strict=True
        )
    ]
    show(rows)
    print(f"\n| heaviest of {args.extra!r} | MB on disk |\n|---|---|")
    for name, size in sorted(ours[3].items(), key=lambda item: -item[1])[:SHOWN]:
        print(f"| {name} | {size:.0f} |")
    if args.json:
        write(rows, args.json)


def installed(extra: str) -> tuple[float, float, float, dict[str, float]]:
    """MB of the files that are fetched, MB on disk, seconds of both steps, and MB by package."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        constraints = HERE / "constraints" / f"{sys.version_info.major}.{sys.version_info.minor}.txt"
        what = f"{HERE}[{extra}]" if extra else str(HERE)
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        begun = time.monotonic()
        subprocess.run(
            [*pip, "download", what, "--constraint", str(constraints), "--dest", str(folder / "files")],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        local = ["--find-links", str(folder / "files")]
        subprocess.run(
            [*pip, "install", *local, what, "--constraint", str(constraints)], check=True, stderr=subprocess.DEVNULL
        )
        seconds = time.monotonic() - begun
        fetched = sum(path.stat().st_size for path in (folder / "files").iterdir()) / 1e6
        sizes = by_package(folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}")
        return fetched, sum(sizes.values()), seconds, sizes


def by_package(lib: Path) -> dict[str, float]:
    """MB of the files that each package's record lists."""
    found = {}
    for record in lib.glob("site-packages/*.dist-info/RECORD"):
        with open(record, newline="", encoding="utf-8") as file:
            paths = [record.parents[1] / line[0] for line in csv.reader(file)]
        found[record.parent.name.partition("-")[0]] = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
    return found


if __name__ == "__main__":
    main()
