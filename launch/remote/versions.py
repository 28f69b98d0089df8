"""Compares an interpreter's packages with the constraints of a commit: versions.py FOLDER_OF_THE_CODE."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9._-]+")


def plain(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def differences(code: Path) -> list[str]:
    """One sentence for each dependency of a training host that is missing or of another version than tested."""
    project = tomllib.loads((code / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [NAME.match(line)[0] for line in project["dependencies"]]  # type: ignore[index]
    file = code / "constraints" / f"{sys.version_info.major}.{sys.version_info.minor}.txt"
    if not file.is_file():
        return [f"Python {file.stem} is not among the versions that m1jax is tested on"]
    lines = file.read_text(encoding="utf-8").splitlines()
    pinned = {plain(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    found = []
    for name in needed:
        want = pinned.get(plain(name), "").split(";")[0].strip()
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} {want} is missing")
            continue
        if want and have != want:
            found.append(f"{name} is {have}, tested is {want}")
    return found


if __name__ == "__main__":
    told = differences(Path(sys.argv[1]))
    if told:
        sys.exit(f"{sys.executable}: {'; '.join(told)}.")
