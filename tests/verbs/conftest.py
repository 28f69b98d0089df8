"""A finished road on a small text of our own, walked once for all tests of this folder."""

import pathlib
import sys

import pytest

from m1jax.verbs import main
from tests import texts

TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")
PROGRAM = [sys.executable, "-c", "import sys; from m1jax.verbs import main; sys.exit(main())"]


def quickstart(folder, text):
    return ["quickstart", "--config", TINY, "--set", f"folder={folder}", "--text", str(text)]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return texts.write(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def road(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("road") / "run"
    assert main(quickstart(folder, text)) == 0
    return folder
