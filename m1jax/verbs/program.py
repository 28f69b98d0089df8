"""The console script `m1`: the command, in a process whose memory comes in large pages."""

import os
import sys

from m1jax.verbs.command import main

_TUNABLES = "GLIBC_TUNABLES"
# XLA's CPU backend takes a step's memory anew from malloc at every step: 740,000 page faults a step at 46M parameters,
# a sixth of its time. With this setting glibc asks the kernel for pages of 2 MiB; it is read when a process begins.
_LARGE_PAGES = "glibc.malloc.hugetlb=1"


def run() -> int:
    """Runs `m1` and returns its exit status; on Linux the program first starts again in its process, with large pages.

    Whatever GLIBC_TUNABLES holds already is left as it is: an empty one keeps the kernel's usual pages.
    """
    if sys.platform == "linux" and _TUNABLES not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_TUNABLES: _LARGE_PAGES})
    return main()
