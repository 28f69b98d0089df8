"""Trained and frozen parameters: a tree of nested dicts cut in two by the paths of its leaves, and joined again."""

from collections.abc import Callable
from typing import Any

Trained = Callable[[str], bool]
"""Says of a parameter's path, its keys joined by "/", whether the optimiser moves it."""


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
