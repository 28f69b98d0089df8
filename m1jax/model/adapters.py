"""Trees of parameters with low-rank factors (LoRA): the scale put into B, the factors apart, and the merged model.

The factors of a matrix at <module>/<name> are at <module>/lora/<name>/a and b: see m1jax.model.layers.LowRank.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.config import LoraConfig, ModelConfig
from m1jax.model.layout import PERIODS, SECTIONS, layout

LORA = "lora"
Tree = dict[str, Any]


def without(tree: Tree) -> Tree:
    """The tree without its factors."""
    return {name: without(value) if isinstance(value, dict) else value for name, value in tree.items() if name != LORA}


def only(tree: Tree) -> Tree:
    """The factors of a tree at their paths, without empty dicts."""
    found: Tree = {}
    for name, value in tree.items():
        if name == LORA:
            found[name] = value
        elif isinstance(value, dict) and (part := only(value)):
            found[name] = part
    return found


def is_factor(path: str) -> bool:
    """Whether the parameter at a path with slashes is a factor."""
    return LORA in path.split("/")


def beside(path: str) -> str:
    """Path of the factors of the matrix at a path."""
    module, _, name = path.rpartition("/")
    return f"{module}/{LORA}/{name}"


def scaled(tree: Tree, config: ModelConfig, lora: LoraConfig) -> Tree:
    """The tree as the model takes it: B times alpha / rank, and times 0 in layers of a stack that have no factors.

    Differentiable: the factors of such layers have a gradient of 0. Without an adapter, the tree given.
    """
    return _per_layer(tree, config, lora, _scaled) if lora.rank else tree


def merged(tree: Tree, config: ModelConfig, lora: LoraConfig) -> Tree:
    """The model alone: W + alpha / rank · A B instead of W, summed in float32, in W's dtype and shape."""
    return _per_layer(tree, config, lora, _merged)


def product(a: Any, b: Any, stacked: bool) -> Any:
    """A B as the matrix beside which they are, float32: of every layer of a stack, or of one; of jax or numpy."""
    lead = a.shape[:1] if stacked else ()
    rank, inputs, outputs = a.shape[-1], a.shape[len(lead) : -1], b.shape[len(lead) + 1 :]
    with jax.default_matmul_precision("highest"):
        flat = a.reshape(*lead, -1, rank).astype(np.float32) @ b.reshape(*lead, rank, -1).astype(np.float32)
    return flat.reshape(*lead, *inputs, *outputs)


def _per_layer(
    tree: Tree, config: ModelConfig, lora: LoraConfig, change: Callable[[Tree, np.ndarray | float], Tree]
) -> Tree:
    """The tree with every block changed by `change(block, scale)`; the scale of a stack has one number a layer."""
    cut = layout(config)

    def scale(section: str, slot: str) -> np.ndarray | float:
        found = [lora.scale if lora.of_layer(layer) else 0.0 for layer in cut.layers_at(section, slot)]
        return np.asarray(found, np.float32) if section == PERIODS else found[0]

    return {
        name: {slot: change(block, scale(name, slot)) for slot, block in part.items()} if name in SECTIONS else part
        for name, part in tree.items()
    }


def _scaled(block: Tree, scale: np.ndarray | float) -> Tree:
    def one(factors: Tree) -> Tree:
        return {"a": factors["a"], "b": factors["b"] * _along(scale, factors["b"])}

    return {
        name: {**module, LORA: {matrix: one(factors) for matrix, factors in module[LORA].items()}}
        if LORA in module
        else module
        for name, module in block.items()
    }


def _merged(block: Tree, scale: np.ndarray | float) -> Tree:
    def one(module: Tree, matrix: str, weight: Any) -> Any:
        factors = module[LORA].get(matrix)
        if factors is None:
            return weight
        delta = product(factors["a"], factors["b"], not isinstance(scale, float))
        return (weight.astype(jnp.float32) + delta * _along(scale, delta)).astype(weight.dtype)

    return {
        name: {matrix: one(module, matrix, weight) for matrix, weight in module.items() if matrix != LORA}
        if LORA in module
        else module
        for name, module in block.items()
    }


def _along(scale: np.ndarray | float, leaf: Any) -> Any:
    """The scale of each layer against the first axis of a stacked leaf."""
    return scale if isinstance(scale, float) else scale.reshape(-1, *[1] * (leaf.ndim - 1))
