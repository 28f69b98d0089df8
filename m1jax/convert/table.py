"""The table between m1jax parameter paths and the tensors of the reference checkpoint (Hugging Face layout).

Legend: H query heads, K KV heads, D head_dim, E hidden, F FFN, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m1jax.model.layout import Layout

Array = np.ndarray
Tree = dict[str, Any]


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

    def shape(self, leaf_shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Shape in the checkpoint of leaves with these shapes."""
        if self.convolution:
            return (1, 1, leaf_shapes[0][0], 1, leaf_shapes[0][1])
        if not self.inputs:
            return leaf_shapes[0]
        rows = sum(math.prod(shape[self.inputs :]) for shape in leaf_shapes)
        return rows, math.prod(leaf_shapes[0][: self.inputs])

    def join(self, leaves: Sequence[Array]) -> Array:
        """The tensor of these leaves, contiguous, in their dtype."""
        if not self.inputs:
            return np.ascontiguousarray(leaves[0]).reshape(self.shape([leaves[0].shape]))
        columns = math.prod(leaves[0].shape[: self.inputs])
        # safetensors writes an array's memory as it lies: the transposes must be copied into C order.
        return np.ascontiguousarray(np.concatenate([leaf.reshape(columns, -1).T for leaf in leaves]))

    def split(self, tensor: Array, leaf_shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """The leaves of a tensor whose shape is right."""
        if not self.inputs:
            return [tensor.reshape(leaf_shapes[0])]
        ends = np.cumsum([math.prod(shape[self.inputs :]) for shape in leaf_shapes])[:-1]
        parts = np.split(tensor, ends)
        return [np.ascontiguousarray(part.T).reshape(shape) for part, shape in zip(parts, leaf_shapes, strict=True)]


OUTER = (
    Tensor("model.embed_tokens.weight", ("embed/weight",)),
    Tensor("model.norm.weight", ("norm/weight",)),
    # NormHead: the stored weight is not normalised.
    Tensor("lm_head.weight", ("head/weight",)),
)
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
    """A tensor of one model: its full name, its leaves' paths in the tree, and their index on the stacked axis."""

    name: str
    tensor: Tensor
    paths: tuple[str, ...]
    stack_index: int | None

    def shapes(self, tree: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """Shapes of the leaves in this layer, from a tree of arrays or of their abstractions."""
        skip = 0 if self.stack_index is None else 1
        return [tuple(find(tree, path).shape[skip:]) for path in self.paths]


def entries(layout: Layout) -> Iterator[Entry]:
    """Every tensor of a model, embedding first, then layer by layer, then norm and head."""
    outer = [Entry(tensor.name, tensor, tensor.leaves, None) for tensor in OUTER]
    yield outer[0]
    for layer in range(layout.num_layers):
        group, slot, stack_index = layout.path(layer)
        for tensor in LAYER:
            paths = tuple(f"{group}/{slot}/{leaf}" for leaf in tensor.leaves)
            yield Entry(f"model.layers.{layer}.{tensor.name}", tensor, paths, stack_index)
    yield from outer[1:]


def find(tree: Mapping[str, Any], path: str) -> Any:
    """The node of a nested mapping at a path with slashes."""
    node: Any = tree
    for name in path.split("/"):
        node = node[name]
    return node
