"""Imports run down the floors of the house only, and importing it loads no JAX."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1] / "m1jax"
FLOORS = (
    {"__init__", "errors"},
    {"artefact", "stages"},
    {"config"},
    {"config_file"},
    {"kernels"},
    {"model"},
    {"parallel"},
    {"optim"},
    {"data"},
    {"train"},
    {"generate"},
    {"evaluate"},
    {"align", "convert", "plan"},
    {"recipes"},
    {"cli"},
)


def floor(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported_rooms(path):
    """Rooms that a file imports, at any depth of its code, but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "m1jax":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (name.split(".")[1] for name in (a.name for a in node.names) if name.startswith("m1jax."))


def test_every_room_has_a_floor_and_imports_run_down():
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imported_rooms(path):
            if other == "__version__" or (room == "__init__" and other == "recipes"):
                continue  # m1jax.load is a door: it imports when it is called
            same = other == room
            assert same or floor(other) < floor(room), f"{path.relative_to(ROOT)} imports {other}"


def test_no_file_is_long_and_none_is_a_drawer():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, path
        assert path.stem not in ("utils", "helpers", "common"), path


def test_importing_m1jax_loads_no_jax():
    program = "import sys, m1jax; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT.parent)
