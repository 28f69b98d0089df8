#!/bin/bash
# jax 0.12 on a CPU: a compiled program takes its temporary memory anew from the kernel every time that it runs.
#
# Expected: a training step is one program that runs again and again, and the compiler knows how much temporary memory
# it needs; so the memory is kept from step to step, and page faults end with the first steps.
# Seen: every run has about as many page faults as its temporary memory has pages of 4 KiB. The memory is one large
# block of malloc, which glibc gives back to the kernel when the run ends; we found no option of jax that keeps it.
# What helps: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the process begins (glibc 2.35 or later, with transparent
# huge pages at `madvise` or `always`). The faults are then fewer by two orders of magnitude.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.12.0.1
cat >"$folder/faults.py" <<'PYTHON'
import os
import platform
import resource
import sys

import jax
import jax.numpy as jnp


@jax.jit
def gradient(weights, x):
    def loss(weights):
        y = x
        for weight in weights:
            y = jnp.tanh(y @ weight)
        return jnp.sum(y * y)

    return jax.grad(loss)(weights)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


weights, x = [jnp.eye(256)] * 16, jnp.ones((8192, 256))
temporary = gradient.lower(weights, x).compile().memory_analysis().temp_size_in_bytes
for _ in range(3):
    jax.block_until_ready(gradient(weights, x))
before, runs = faults(), 5
for _ in range(runs):
    jax.block_until_ready(gradient(weights, x))
found, pages = (faults() - before) / runs, temporary / 4096
print(f"jax {jax.__version__}, Python {platform.python_version()}, {' '.join(platform.libc_ver())}, "
      f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')!r}")
print(f"{temporary / 2**20:.0f} MiB of temporary memory are {pages:,.0f} pages; page faults of a run: {found:,.0f}")
if sys.argv[1] == "anew" and found < 0.8 * pages or sys.argv[1] == "large" and found > 0.1 * pages:
    sys.exit("the behaviour changed")
PYTHON
export JAX_PLATFORMS=cpu
GLIBC_TUNABLES='' "$folder/venv/bin/python" "$folder/faults.py" anew
if grep -q '\[never\]' /sys/kernel/mm/transparent_hugepage/enabled; then
  echo "this kernel has no transparent huge pages: what helps was not tried"
else
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 "$folder/venv/bin/python" "$folder/faults.py" large
fi
echo "the behaviour is as described"
