#!/bin/bash
# jax 0.12 on one CPU device: jit compiles a function once for each way in which its arguments came to that device.
#
# Expected: there is one device, so a function is compiled once for its shapes and dtypes.
# Seen: three times. First with an argument that jax placed by itself (the output of a program without arguments); then
# with its own output, which is bound to the device because the other argument is; then with the same arrays laid out
# over a mesh of that one device. A loop that feeds a program its own output therefore compiles it in its first step and
# again in its second, whose time is then measured as if nothing were compiled.
# What helps: jax.device_put(array, device) before the first call, and no NamedSharding where a mesh has one device.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.12.0.1
cat >"$folder/placement.py" <<'PYTHON'
import logging
import platform

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

compiled = []


class Counter(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("Finished XLA compilation of jit(step)"):
            compiled.append(record)


logging.getLogger("jax._src.dispatch").addHandler(Counter())
logging.getLogger("jax._src.dispatch").propagate = False
logging.getLogger("jax._src.interpreters.pxla").setLevel(logging.ERROR)
jax.config.update("jax_log_compiles", True)


@jax.jit
def start():
    return jnp.zeros((4, 4))


def run(place):
    @jax.jit
    def step(weight, x):
        return jnp.tanh(x @ weight)

    compiled.clear()
    counts, x = [], place(start())
    for _ in range(3):
        x = step(weight, x)
        counts.append(len(compiled))
    step(*jax.device_put((weight, x), over_a_mesh))
    return [*counts, len(compiled)]


(device,) = jax.devices()
weight = jax.device_put(jnp.ones((4, 4)), device)
over_a_mesh = NamedSharding(Mesh([device], ("one",)), PartitionSpec())
as_it_is, placed = run(lambda x: x), run(lambda x: jax.device_put(x, device))
print(f"Python {platform.python_version()}, jax {jax.__version__}, devices: {jax.devices()}")
print(f"compilations after steps 1, 2, 3 and one on a mesh of the device: {as_it_is}; placed before: {placed}")
assert as_it_is == [1, 2, 2, 3], as_it_is
assert placed == [1, 1, 1, 2], placed
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/placement.py"
