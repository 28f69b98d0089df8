"""Which Python `make` takes: the newest that runs and that constraints/ has a file for."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def pythons(folder, *names):
    for name in names:
        version = name.removeprefix("python")
        (folder / name).write_text(f"#!/bin/sh\necho {version}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def newest(env, *version):
    return subprocess.run(
        [ROOT / "constraints" / "newest_python", *version], env=env, capture_output=True, text=True, check=False
    )


def test_the_newest_is_taken_and_a_version_that_is_asked_for(tmp_path):
    env = pythons(tmp_path, "python3.11", "python3.12", "python3.13")
    assert newest(env).stdout.strip() == str(tmp_path / "python3.13")
    assert newest(env, "3.12").stdout.strip() == str(tmp_path / "python3.12")


def test_one_that_is_on_the_path_but_does_not_run_is_passed_over(tmp_path):
    env = pythons(tmp_path, "python3.12", "python3.13")
    (tmp_path / "python3.13").write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    assert newest(env).stdout.strip() == str(tmp_path / "python3.12")


def test_without_any_it_says_what_to_install(tmp_path):
    found = newest(pythons(tmp_path, "python3.11"), "3.99")
    assert found.returncode == 2
    assert not found.stdout
    assert "supports Python 3.14 3.13 3.12" in found.stderr


def test_make_refuses_a_python_that_is_not_tested(tmp_path):
    env = pythons(tmp_path, "python3.11")
    command = ["make", "-n", "test", f"VENV={tmp_path / 'environment'}", "PYTHON=python3.11"]
    found = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "python3.11 is Python 3.11: m1jax supports Python 3.12 3.13 3.14" in found.stderr
    assert not (tmp_path / "environment").exists()


@pytest.mark.skipif(RUNNING == "3.14", reason="PyTorch and seqio are tested with the default Python")
def test_packages_without_which_tests_would_be_left_out_are_here():
    assert importlib.util.find_spec("seqio")
    assert importlib.util.find_spec("torch")
