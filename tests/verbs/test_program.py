import os
import subprocess
import sys

import pytest

PROGRAM = "import os; print(os.environ.get('GLIBC_TUNABLES')); from m1jax.verbs.program import run; run()"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")


def said(**settings):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | settings
    words = [sys.executable, "-c", PROGRAM, "--version"]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_command_takes_large_pages_once():
    assert [line.split()[0] for line in said()] == ["None", "glibc.malloc.hugetlb=1", "m1jax"]


def test_what_the_user_set_stays():
    assert [line.split()[0] for line in said(GLIBC_TUNABLES="glibc.malloc.check=0")] == [
        "glibc.malloc.check=0",
        "m1jax",
    ]
