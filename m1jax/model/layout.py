"""The place of each layer in a model's parameter tree: prefix, scanned periods, suffix.

The layer list is cut into prefix + n x period + suffix so that the fewest distinct blocks are compiled. Parameters of
the periods carry a leading axis of length n. Everything that depends on these names asks this module.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from m1jax.config import ModelConfig

PREFIX, PERIODS, SUFFIX = SECTIONS = ("prefix", "periods", "suffix")
"""Keys at the root of a parameter tree under which the layers are; other keys there are parameters of no layer."""


def stacked(path: tuple[Any, ...]) -> bool:
    """True where the first axis of a leaf is the layers of a slot: parameters, gradients, and moments of these.

    `path` is JAX's key path of the leaf, in any tree that holds a parameter tree.
    """
    return PERIODS in _names(path)


def _names(path: tuple[Any, ...]) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


class LayerPath(NamedTuple):
    """Path of a layer's block in the tree, and its index on the leading axis (None where there is no such axis)."""

    section: str
    slot: str
    stack_index: int | None


@dataclass(frozen=True)
class Layout:
    """The cut of a layer list: `prefix` layers, `repeats` times the `period`, `suffix` layers (kinds, in order)."""

    prefix: tuple[str, ...]
    period: tuple[str, ...]
    repeats: int
    suffix: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """Layers in all."""
        return len(self.prefix) + self.repeats * len(self.period) + len(self.suffix)

    def path(self, layer: int) -> LayerPath:
        """The place of layer number `layer` (from 0): the only mapping between layer numbers and tree paths."""
        assert 0 <= layer < self.num_layers
        inside = layer - len(self.prefix)
        if inside < 0:
            return LayerPath(PREFIX, str(layer), None)
        if inside < self.repeats * len(self.period):
            return LayerPath(PERIODS, str(inside % len(self.period)), inside // len(self.period))
        return LayerPath(SUFFIX, str(inside - self.repeats * len(self.period)), None)

    def kind_of(self, path: tuple[Any, ...]) -> str:
        """Layer kind of a parameter, such as "window"; the name at the tree's root for a parameter of no layer.

        `path` is JAX's key path of the leaf, in the parameter tree itself.
        """
        section, *rest = _names(path)
        kinds = {PREFIX: self.prefix, PERIODS: self.period, SUFFIX: self.suffix}
        return kinds[section][int(rest[0])] if section in kinds else section

    def layers_at(self, section: str, slot: str) -> tuple[int, ...]:
        """Numbers of the layers whose parameters are under section/slot: one, or those stacked there."""
        if section == PERIODS:
            return self.layers_of_slot(int(slot))
        return (int(slot) + (self.num_layers - len(self.suffix) if section == SUFFIX else 0),)

    def layers_of_slot(self, slot: int) -> tuple[int, ...]:
        """Layer numbers stacked in a slot of the period, in order."""
        return tuple(len(self.prefix) + n * len(self.period) + slot for n in range(self.repeats))


def layout(config: ModelConfig) -> Layout:
    """The cut of the config's layers that leaves the fewest distinct blocks; ties go to the shortest prefix."""
    kinds = config.layer_kinds
    total = len(kinds)
    best: tuple[int, int, int, int] = (total, total, 0, 0)  # distinct blocks, prefix, period length, repeats
    for prefix in range(total):
        for length in range(1, (total - prefix) // 2 + 1):
            matching = prefix + length
            while matching < total and kinds[matching] == kinds[matching - length]:
                matching += 1
            repeats = (matching - prefix) // length
            if repeats > 1:
                best = min(best, (total - (repeats - 1) * length, prefix, length, repeats))
    _, prefix, length, repeats = best
    end = prefix + length * repeats
    return Layout(kinds[:prefix], kinds[prefix : prefix + length], repeats, kinds[end:])
