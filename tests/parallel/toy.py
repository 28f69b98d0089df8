"""A run small enough to compile in seconds on any mesh of eight devices, and batches for it."""

import functools
import pathlib

import jax
import numpy as np

from m1jax import model, objectives
from m1jax.config import file as config_file
from m1jax.train import program as programs
from m1jax.train.objective import StageScalars

TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")
MODEL = {
    "vocab_size": 512, "hidden": 32, "ffn": 48, "num_layers": 10, "num_heads": 8, "num_kv_heads": 2,
    "window_num_heads": 8, "window_num_kv_heads": 4, "window": 20, "init_std": 0.2,
}  # fmt: skip
ROWS, LENGTH = 8, 64
BASE = 1e4
SCALARS = StageScalars(np.float32(BASE), np.bool_(True))


def config(*overrides):
    """A RunConfig: five periods, so that they are scanned; a window that spans three of eight context shards."""
    return config_file.load(TINY, [*(f"model.{name}={value}" for name, value in MODEL.items()), *overrides])


def batch(seed=0, rows=ROWS, length=LENGTH):
    """Two documents and padding a row, with borders anywhere; the rows have different numbers of targets."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 512, (rows, length + 1), np.int32)
    borders = np.sort(rng.integers(1, length, (rows, 2)), axis=1)
    index = np.arange(length)
    segments = 1 + (index >= borders[:, :1]) + (index >= borders[:, 1:])
    starts = np.where(segments == 1, 0, np.where(segments == 2, borders[:, :1], borders[:, 1:]))
    last = np.append(segments[:, 1:] != segments[:, :-1], np.ones((rows, 1), bool), axis=1)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.where(last | (segments == 3), 0, 1).astype(np.float32),
        "segment_ids": np.where(segments == 3, 0, segments).astype(np.int32),
        "positions": (index - starts).astype(np.int32),
    }


def program(run, mesh):
    """The program of a run on a mesh."""
    return programs.build(run, objectives.make(run, mesh), mesh)


@functools.cache
def _initial(config):
    return jax.device_get(model.create(config, 0)[1])


def state(built, run):
    """The first state of a program; its parameters are drawn once for all meshes."""

    # Each process places what its devices hold; `device_put` would first compare the values of all processes.
    def place(value, like):
        return jax.make_array_from_callback(value.shape, like.sharding, value.__getitem__)

    return built.begin(jax.tree.map(place, _initial(run.model), built.state.params))


def steps(built, state, batches):
    """Loss and gradient norm of every step, float64 (steps, 2), and the last state."""
    found = []
    for one in batches:
        arguments = built.arguments(*one["tokens"].shape)
        placed = {name: jax.device_put(value, arguments[1][name].sharding) for name, value in one.items()}
        state, metrics = built.step(state, placed, SCALARS)
        found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        assert float(metrics["denominator"]) == one["weights"].sum()
    return np.array(found), state
