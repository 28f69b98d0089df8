"""The model of a run that trained an adapter: its factors multiplied into the matrices as they are read."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from m1jax import model
from m1jax.config import LoraConfig, ModelConfig
from m1jax.config.tuning import MATRICES
from m1jax.convert import parameters
from m1jax.convert.parameters import OnDisk
from m1jax.convert.tensor_files import Array
from m1jax.model import adapters
from m1jax.model.layout import PERIODS, SECTIONS
from m1jax.optim import masks
from m1jax.parallel import rules


class Merged:
    """Parameters on disk as those of one model: W + alpha / rank · A B where W has factors, float32 there.

    See `m1jax.convert.parameters.Parameters`.
    """

    def __init__(self, stored: OnDisk, config: ModelConfig, lora: LoraConfig):
        self.place = stored.place
        self._stored, self._lora, self._cut = stored, lora, model.layout(config)

    def dtype(self, path: str) -> str:
        """See Parameters."""
        return "float32" if self._layers(path) else self._stored.dtype(path)

    def rows(self, path: str) -> int:
        """See Parameters."""
        return self._stored.rows(path)

    def read(self, path: str, at: int | slice | None) -> Array:
        """See Parameters: a matrix with factors is read whole, or one layer of a stack."""
        own = self._stored.read(path, at)
        layers = self._layers(path)
        if not layers:
            return own
        assert not isinstance(at, slice), "no table has factors"
        own = own.astype(np.float32)
        stacked = path.startswith(PERIODS) and at is None
        if at is not None:
            layers = layers[at : at + 1]
        a, b = (self._stored.read(f"{adapters.beside(path)}/{name}", at) for name in ("a", "b"))
        scale = np.asarray([self._lora.scale if self._lora.of_layer(layer) else 0.0 for layer in layers], np.float32)
        delta = adapters.product(a, b, stacked)
        return own + delta * (scale.reshape(-1, *[1] * (delta.ndim - 1)) if stacked else scale[0])

    def _layers(self, path: str) -> tuple[int, ...]:
        """The layers in the leaf at a path; none where none of them has factors beside it."""
        section, *rest = path.split("/")
        if section not in SECTIONS or "/".join(rest[1:]) not in {MATRICES[name] for name in self._lora.targets}:
            return ()
        layers = self._cut.layers_at(section, rest[0])
        return layers if any(map(self._lora.of_layer, layers)) else ()


def opened(folder: Path, config: ModelConfig, lora: LoraConfig | None) -> OnDisk | Merged:
    """The parameters in an Orbax folder, read in parts; with an adapter those of the merged model."""
    stored = OnDisk(folder)
    return stored if lora is None else Merged(stored, config, lora)


def restore(folder: Path, target: Any, config: ModelConfig, lora: LoraConfig | None) -> Any:
    """The parameters of a folder as `parameters.restore` gives them; with an adapter those of the merged model."""
    if lora is None:
        return parameters.restore(folder, target)
    return merge(parameters.restore(folder, with_factors(target, config, lora)), target, config, lora)


def with_factors(target: Any, config: ModelConfig, lora: LoraConfig) -> Any:
    """The abstract tree of a model's parameters with the factors of an adapter, on the same devices."""
    sharding = jax.tree.leaves(target)[0].sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) else None
    return masks.merge(target, adapters.only(abstract(config, mesh, lora)))


def abstract(config: ModelConfig, mesh: Mesh | None, lora: LoraConfig | None = None) -> Any:
    """Shapes, dtypes and shardings of a model's parameters: over a mesh as the rules say, or on the first device."""
    found = model.abstract(config, lora=lora)
    device = SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, found.shapes)
    if mesh is not None:
        shardings = rules.parameter_shardings(mesh, found.shapes, found.axes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), found.shapes, shardings
    )


def merge(tree: Any, target: Any, config: ModelConfig, lora: LoraConfig) -> Any:
    """The merged model of a tree with factors, in the shardings of the abstract `target`; the tree is donated."""
    program = jax.jit(
        lambda alone, factors: adapters.merged(masks.merge(alone, factors), config, lora),
        out_shardings=rules.shardings_of(target),
        donate_argnums=0,
    )
    return program(adapters.without(tree), adapters.only(tree))
