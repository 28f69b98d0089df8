"""The Baichuan-M1 decoder (arXiv 2502.12671) in flax.nnx: parameters, forward pass, head and loss."""

from m1jax.model.cache import Cache, empty_cache
from m1jax.model.decoder import Abstract, Decoder, abstract, block_of, create, initialise, unrolled, unstacked
from m1jax.model.head import Loss
from m1jax.model.layout import LayerPath, Layout, layout

__all__ = [
    "Abstract",
    "Cache",
    "Decoder",
    "LayerPath",
    "Layout",
    "Loss",
    "abstract",
    "block_of",
    "create",
    "empty_cache",
    "initialise",
    "layout",
    "unrolled",
    "unstacked",
]
