"""Trained and frozen parameters: a tree of nested dicts cut in two by the paths of its leaves, and joined again."""

from collections.abc import Callable
from typing import Any

import jax

from m1jax.config import RunConfig
from m1jax.config.tuning import matched
from m1jax.errors import UserError
from m1jax.model import adapters
from m1jax.model.layout import SECTIONS, layout

Trained = Callable[[str], bool]
"""Says of a parameter's path, its keys joined by "/", whether the optimiser moves it."""


def of_run(config: RunConfig, shapes: dict[str, Any]) -> Trained:
    """What a run trains of the tree `shapes`: every parameter, or low-rank factors and what `train.trained` names.

    Raises UserError where it names some layers of a stack: a stack is one parameter.
    """
    lora, patterns = config.train.lora, config.train.trained
    if not lora.rank and not patterns:
        return lambda path: True
    names, cut = matched(config.model, patterns), layout(config.model)

    def trained(path: str) -> bool:
        if adapters.is_factor(path):
            return True
        section, *rest = path.split("/")
        if section not in SECTIONS:
            return path in names
        layers = cut.layers_at(section, rest[0])
        name = "/".join(rest[1:])
        own = [layer for layer in layers if f"layers/{layer}/{name}" in names]
        if own and len(own) < len(layers):
            left = next(layer for layer in layers if layer not in own)
            raise UserError(
                f"config key train.trained names {name} of layer {own[0]} but not of layer {left}, which are one array "
                f"in memory: name all of layers {', '.join(map(str, layers))} or none, or choose some layers with "
                f"train.lora.layers."
            )
        return bool(own)

    for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
        trained(jax.tree_util.keystr(path, simple=True, separator="/"))
    return trained


def frozen_in(shapes: dict[str, Any], trained: Trained, dtype: str) -> dict[str, Any]:
    """The abstract tree with its frozen leaves in `dtype`; empty: as they are."""

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf if not dtype or trained(name) else jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


def split(tree: dict[str, Any], trained: Trained) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trained leaves of nested dicts and the frozen ones, each without empty dicts."""
    chosen, frozen = _split(tree, trained, "")
    return chosen, frozen


def merge(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The nested dicts that `split` cut; raises ValueError where both hold a leaf of one path."""
    merged = dict(first)
    for name, value in second.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] = merge(merged[name], value)
        else:
            raise ValueError(f"both trees hold a leaf {name!r}")
    return {name: merged[name] for name in sorted(merged)}


def _split(tree: dict[str, Any], trained: Trained, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    chosen: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            parts = _split(value, trained, f"{prefix}{name}/")
            for side, part in zip((chosen, frozen), parts, strict=True):
                if part:
                    side[name] = part
        else:
            (chosen if trained(prefix + name) else frozen)[name] = value
    return chosen, frozen
