"""The table between m1jax parameter paths and the tensors of the reference checkpoint (Hugging Face layout).

Legend: H query heads, K KV heads, D head_dim, E hidden, F FFN, V vocabulary.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m1jax import model as models
from m1jax.config import ModelConfig

Tree = dict[str, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One checkpoint tensor and the leaves that make it.

    A matrix (`inputs` > 0) is stored output-major: leaf axes up to `inputs` are the columns, the others the rows; the
    rows of several leaves follow each other. With `inputs` 0 the leaf is stored in `shape`, or as it is.
    """

    name: str
    leaves: tuple[str, ...]
    inputs: int = 0
    convolution: bool = False

    def shape(self, leaf_shapes: Sequence[Shape]) -> Shape:
        """Shape in the checkpoint of leaves with these shapes."""
        if self.convolution:
            return (1, 1, leaf_shapes[0][0], 1, leaf_shapes[0][1])
        if not self.inputs:
            return leaf_shapes[0]
        rows = sum(math.prod(shape[self.inputs :]) for shape in leaf_shapes)
        return rows, math.prod(leaf_shapes[0][: self.inputs])


EMBEDDING = Tensor("model.embed_tokens.weight", ("embed/weight",))
NORM = Tensor("model.norm.weight", ("norm/weight",))
# NormHead: the stored weight is not normalised. A head tied to the embedding has no tensor.
HEAD = Tensor("lm_head.weight", ("head/weight",))
LAYER = (
    Tensor("input_layernorm.weight", ("input_norm/weight",)),
    Tensor("self_attn.W_pack.weight", ("attention/q_proj", "attention/k_proj", "attention/v_proj"), inputs=1),
    Tensor("self_attn.o_proj.weight", ("attention/o_proj",), inputs=2),
    # (1, 1, K, 1, 2), index 0 weighs the previous token.
    Tensor("self_attn.conv_k", ("attention/conv_k",), convolution=True),
    Tensor("self_attn.conv_v", ("attention/conv_v",), convolution=True),
    Tensor("post_attention_layernorm.weight", ("post_attention_norm/weight",)),
    Tensor("mlp.gate_proj.weight", ("mlp/gate_proj",), inputs=1),
    Tensor("mlp.up_proj.weight", ("mlp/up_proj",), inputs=1),
    Tensor("mlp.down_proj.weight", ("mlp/down_proj",), inputs=1),
)


@dataclass(frozen=True)
class Entry:
    """A tensor of one model: its full name and shape, and where its leaves lie in the tree."""

    name: str
    tensor: Tensor
    paths: tuple[str, ...]
    leaf_shapes: tuple[Shape, ...]
    """Shapes of the leaves, one layer of them where they are stacked."""
    stack_index: int | None
    """Index of the layer on the stacked axis; None where there is no such axis."""

    @property
    def shape(self) -> Shape:
        """Shape in the checkpoint."""
        return self.tensor.shape(self.leaf_shapes)


@dataclass(frozen=True)
class Part:
    """Where one layer of a leaf lies in a checkpoint: elements from `start` on of the flat tensor `name`.

    Where `columns` is not 0 they are rows of that many columns, and the leaf is their transpose.
    """

    name: str
    start: int
    columns: int


@dataclass(frozen=True)
class Leaf:
    """A parameter and its parts, one a layer where `stacked`."""

    path: str
    shape: Shape
    stacked: bool
    parts: tuple[Part, ...]

    @property
    def layer_shape(self) -> Shape:
        """Shape of one part."""
        return self.shape[1:] if self.stacked else self.shape


@functools.lru_cache(maxsize=4)
def entries(config: ModelConfig) -> tuple[Entry, ...]:
    """Every tensor of a model, embedding first, then layer by layer, then norm and head."""
    layout, shapes = models.layout(config), models.abstract(config).shapes

    def entry(tensor: Tensor, prefix: str, place: str, stack_index: int | None) -> Entry:
        paths = tuple(place + leaf for leaf in tensor.leaves)
        skip = 0 if stack_index is None else 1
        leaf_shapes = tuple(tuple(find(shapes, path).shape[skip:]) for path in paths)
        return Entry(prefix + tensor.name, tensor, paths, leaf_shapes, stack_index)

    found = [entry(EMBEDDING, "", "", None)]
    for layer in range(layout.num_layers):
        group, slot, stack_index = layout.path(layer)
        found += [entry(tensor, f"model.layers.{layer}.", f"{group}/{slot}/", stack_index) for tensor in LAYER]
    found.append(entry(NORM, "", "", None))
    return tuple(found if config.tie_embeddings else [*found, entry(HEAD, "", "", None)])


def leaves(config: ModelConfig) -> Iterator[Leaf]:
    """Every parameter of a model with the parts of checkpoint tensors that make it, layers in order."""
    parts: dict[str, list[Part]] = {}
    shapes: dict[str, Shape] = {}
    stacked: dict[str, bool] = {}
    for entry in entries(config):
        start = 0
        for path, shape in zip(entry.paths, entry.leaf_shapes, strict=True):
            columns = math.prod(shape[: entry.tensor.inputs]) if entry.tensor.inputs else 0
            parts.setdefault(path, []).append(Part(entry.name, start, columns))
            shapes[path], stacked[path] = shape, entry.stack_index is not None
            start += math.prod(shape)
    for path, its in parts.items():
        shape = (len(its), *shapes[path]) if stacked[path] else shapes[path]
        yield Leaf(path, shape, stacked[path], tuple(its))


def find(tree: Mapping[str, Any], path: str) -> Any:
    """The node of a nested mapping at a path with slashes."""
    node: Any = tree
    for name in path.split("/"):
        node = node[name]
    return node


def nested(flat: Mapping[str, Any]) -> Tree:
    """A nested mapping from one of paths with slashes."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree
