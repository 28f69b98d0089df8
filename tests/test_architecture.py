"""docs/architecture.md is true: its code prints what it shows, its picture has our floors, what it names exists."""

import contextlib
import importlib.util
import io
import pathlib
import re
import tempfile

import pytest

from tests.test_floors import FLOORS

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_code_prints_what_the_page_shows(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {}
    assert len(blocks("python")) == len(blocks("text")) == 2
    for code, shown in zip(blocks("python"), blocks("text"), strict=True):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, str(PAGE), "exec"), names)
        assert out.getvalue().strip() == shown.strip()


def test_the_rooms_are_those_of_the_floors():
    assert re.findall(r"^\d+\. `(\w+)`", TEXT, re.MULTILINE) == list(FLOORS)


def test_the_picture_numbers_the_floors():
    spec = importlib.util.spec_from_file_location("architecture_picture", PAGE.with_suffix(".py"))
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    rooms = sorted((room.number, room.name) for floor in picture.FLOORS for room in floor.rooms)
    assert rooms == list(enumerate(FLOORS, 1))


def files():
    """The files and folders that the page names, and the names that follow "`file`: "."""
    for path, after in re.findall(r"`([\w/]+(?:\.py|/))`((?:: `\w+`(?:, `\w+`(?!:))*)?)", TEXT):
        found = [base / path for base in (ROOT / "m1jax", ROOT) if (base / path).exists()]
        yield path, found, re.findall(r"`(\w+)`", after)


def test_what_the_page_names_exists():
    named = list(files())
    assert len(named) > 30
    for path, found, names in named:
        assert found, path
        for name in names:
            assert re.search(rf"\b{name}\b", found[0].read_text(encoding="utf-8")), f"{path}: {name}"


KINDS = ("layer kind", "optimiser", "objective", "text source", "chat format", "question set", "tracker", "verb")


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_says_where_it_goes(kind):
    assert re.search(rf"^\| {kind} \|", TEXT, re.MULTILINE)
