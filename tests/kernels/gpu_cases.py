"""What a GPU computes beside the reference on the host's CPU: a line of JSON a case, for test_gpu_device.py.

Run by itself, as the tests' own process has no GPU: python -m tests.kernels.gpu_cases
"""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from m1jax import kernels
from m1jax.kernels import reference
from tests.kernels.rows import NAMES, arguments, drawn, rows_of

LAYERS = {"global": (20, 2, 256, None), "window": (40, 8, 128, 300), "small": (6, 2, 64, 33)}
ROWS = {"packed": ([200, 1, 511, 129, 100], [1000]), "whole": ([1024], [1024])}
S = 1024


def compare(layer, rows):
    """For each result the norm of its difference from the float32 reference, by the norm of that."""
    H, K, D, window = LAYERS[layer]
    x = drawn(0, 2, S, H, K, D)
    ids, positions = rows_of(*ROWS[rows], S=S)
    weigh = jnp.asarray(np.random.default_rng(1).normal(size=x["q"].shape), jnp.float32)
    narrow = {name: value.astype(jnp.bfloat16) if name in "qkv" else value for name, value in x.items()}

    def run(attention, x, ids):
        def loss(x):
            out = attention(*arguments(x, ids, positions, window, impl="gpu"))
            return jnp.sum(out.astype(jnp.float32) * weigh), out

        (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(x)
        return {"out": out, **gradients}

    found = jax.jit(lambda x: run(kernels.attention, x, None if rows == "whole" else ids))(narrow)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        rounded = jax.tree.map(lambda value: jnp.asarray(np.asarray(value, np.float32)), narrow)
        want = jax.jit(lambda x: run(reference.attention, x, ids))(rounded)
    errors = {}
    for name in ("out", *NAMES):
        ours, theirs = (np.asarray(side[name], np.float64) for side in (found, want))
        errors[name] = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    padding = np.asarray(ids) == 0
    errors["padding"] = float(sum(np.abs(np.asarray(found[n], np.float32)[padding]).sum() for n in ("out", "q", "k")))
    return errors


def main():
    if jax.default_backend() != "gpu":
        sys.exit("no GPU is attached that jax sees")
    for layer, rows in itertools.product(LAYERS, ROWS):
        sys.stdout.write(json.dumps({"layer": layer, "rows": rows, "errors": compare(layer, rows)}) + "\n")


if __name__ == "__main__":
    main()
