"""Packed rows of a small text, made once, and a cloud for each test."""

import pathlib
import shutil

import pytest

from m1jax.verbs import main
from tests import texts
from tests.launch.cloud import Cloud

TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """What lies in the bucket before a run: corpus, tokenizer and rows."""
    folder = tmp_path_factory.mktemp("packed") / "run"
    text = texts.write(tmp_path_factory.mktemp("text"))
    arguments = ["--config", TINY, "--set", f"folder={folder}"]
    assert main(["corpus", *arguments, "--text", str(text)]) == 0
    assert main(["tokenizer", "train", *arguments]) == 0
    assert main(["pack", *arguments]) == 0
    return folder


@pytest.fixture
def make_cloud(tmp_path):
    """Makes a cloud with settings that differ from the usual ones; whatever runs there ends with the test."""
    made = []

    def make(**settings):
        made.append(Cloud(tmp_path / f"at-{len(made)}", **settings))
        return made[-1]

    yield make
    for cloud in made:
        cloud.close()


@pytest.fixture
def with_rows(packed):
    """Puts the packed rows into a cloud's bucket."""

    def put(cloud):
        shutil.copytree(packed, cloud.run_folder)
        return cloud

    return put
