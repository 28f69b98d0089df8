"""Packed rows of a small text, made once, and a cloud for each test."""

import contextlib
import pathlib
import shutil

import psutil
import pytest

from m1jax.verbs import main
from tests import texts
from tests.launch.cloud import Cloud
from tests.launch.host import Host

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


@pytest.fixture
def make_host(tmp_path):
    """Makes hosts; whatever runs there ends with the test."""
    made = []

    def make(name="0-0", **rest):
        made.append(Host(tmp_path, name, tmp_path / "bucket", **rest))
        return made[-1]

    yield make
    roots = {str(host.root) for host in made}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("M1_ROOT") in roots:
                process.kill()
