"""Imports run down the floors of the house only, never in a circle, and importing it loads no JAX."""

import ast
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "m1jax"
# As docs/architecture.md draws them, lowest first; a room that this list does not name fails the test.
FLOORS = (
    "errors", "hardware", "disk", "artefact", "config", "client", "grading", "kernels", "model", "parallel", "optim",
    "tokenizer", "text", "rows", "curriculum", "train", "objectives", "generate", "rollouts", "serve", "evaluate",
    "convert", "plan", "loading", "show", "verbs",
)  # fmt: skip


def files_of(root):
    """Every module of a package: its dotted name below the package, and its file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name, path, modules, package="m1jax"):
    """Modules of the package that a file imports at any depth of its code, but not for type checkers alone."""
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
        if isinstance(node, ast.ImportFrom):
            if node.level:  # `from .x import y`, only in what an export carries
                above = [package, *name.split(".")][: -node.level]
                top, _, rest = ".".join([*above, node.module or ""]).rstrip(".").partition(".")
            else:
                top, _, rest = (node.module or "").partition(".")
            if top == package:
                for alias in node.names:
                    inside = f"{rest}.{alias.name}".lstrip(".")
                    yield inside if inside in modules else rest
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith(package + "."))


def graph_of(root):
    """Imports between the files of a package; `from m1jax import __version__` and other names of its root excluded."""
    modules = files_of(root)
    graph = {name: {other for other in imported(name, path, modules) if other} for name, path in modules.items()}
    for name, others in graph.items():
        for other in others:
            assert other in modules, f"{name} imports m1jax.{other}, which is no file of the package"
    return graph


def circle(graph):
    """The files of one circle of imports, in order; None where there is none."""
    state, stack = {}, []

    def visit(name):
        state[name] = "open"
        stack.append(name)
        for other in sorted(graph[name]):
            if state.get(other) == "open":
                return stack[stack.index(other) :]
            if other not in state and (found := visit(other)):
                return found
        stack.pop()
        state[name] = "done"
        return None

    return next((found for name in sorted(graph) if name not in state and (found := visit(name))), None)


def climbs(graph, floors=FLOORS):
    """Imports that do not run down, as (file, imported file)."""
    number = {room: i for i, room in enumerate(floors)}
    return [
        (name, other)
        for name, others in graph.items()
        for other in others
        if name
        and name.split(".")[0] != other.split(".")[0]
        and number[other.split(".")[0]] >= number[name.split(".")[0]]
    ]


def test_every_room_has_a_floor_and_imports_run_down():
    graph = graph_of(ROOT)
    assert {name.split(".")[0] for name in graph if name} == set(FLOORS)
    assert not climbs(graph)
    # m1jax.load is a door: it imports when it is called.
    assert graph[""] <= {"loading"}


def test_no_verb_imports_another():
    graph = graph_of(ROOT)
    shared = ("verbs.command", "verbs.arguments", "verbs.tuning")
    verbs = [name for name in graph if name.startswith("verbs.") and name not in shared]
    assert len(verbs) > 12
    for name in verbs:
        inside = {other for other in graph[name] if other.split(".")[0] == "verbs"}
        # These give the commands of other verbs.
        others = {
            "verbs.quickstart": {"verbs.command"},
            "verbs.program": {"verbs.command"},
            "verbs.sft": {"verbs.tuning"},
            "verbs.prefer": {"verbs.tuning"},
            "verbs.rl": {"verbs.tuning"},
        }
        assert inside <= {"verbs.arguments", *others.get(name, ())}, name


def test_no_file_imports_itself_by_way_of_others():
    graph = graph_of(ROOT)
    del graph[""]
    assert circle(graph) is None


@pytest.mark.parametrize(
    ("files", "climbing", "turning"),
    [
        ({"low/a.py": "", "high/b.py": "from m1jax.low import a"}, [], None),
        ({"low/a.py": "def f():\n    from m1jax.high import b", "high/b.py": ""}, [("low.a", "high.b")], None),
        (
            {"low/a.py": "import m1jax.low.c", "low/c.py": "def f():\n    from m1jax.low.a import g"},
            [],
            ["low.a", "low.c"],
        ),
        ({"low/__init__.py": "from m1jax.low.a import x", "low/a.py": "from m1jax import low"}, [], ["low", "low.a"]),
    ],
)
def test_the_check_sees_what_is_wrong(tmp_path, files, climbing, turning):
    root = tmp_path / "m1jax"
    for name, text in {"__init__.py": "", "low/__init__.py": "", "high/__init__.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    graph = graph_of(root)
    assert climbs(graph, ("low", "high")) == climbing
    assert circle(graph) == turning


def test_no_file_is_long_and_none_is_a_drawer():
    files = list(files_of(ROOT).values())
    assert len(files) > 100
    for path in files:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, path
        assert path.stem not in ("utils", "helpers", "common"), path


def test_importing_m1jax_loads_no_jax():
    program = "import sys, m1jax; assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT.parent)
