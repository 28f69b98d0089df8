"""docs/surprises.md: the tests that it names are there, and the words that it calls unused are not used."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | "))
    for line in (ROOT / "docs" / "surprises.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "what surprises" not in line
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def identifiers():
    """Every name, attribute, keyword and imported module of the package."""
    found = set()
    for path in (ROOT / "m1jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.alias):
                found.update(node.name.split("."))
            elif isinstance(node, ast.keyword):
                found.add(node.arg)
            elif isinstance(node, ast.ImportFrom):
                found.update((node.module or "").split("."))
    return found


def functions(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_says_what_is_done():
    assert len(ROWS) > 40 and all(len(row) == 2 for row in ROWS), [row for row in ROWS if len(row) != 2]
    for trap, here in ROWS:
        assert here.startswith(("not used: `", "guarded by `tests/", "fixed: `tests/")), trap


@pytest.mark.parametrize(("file", "name"), sorted({pair for _, here in ROWS for pair in TEST.findall(here)}))
def test_the_tests_are_there(file, name):
    assert name in functions(file)


def test_what_is_called_unused_is_unused():
    words = {
        word
        for _, here in ROWS
        if here.startswith("not used: ")
        for word in re.findall(r"`(\w+)`", here.partition(";")[0].partition(". ")[0])
    }
    assert len(words) > 15 and not words & identifiers()
