"""The Baichuan-M1 decoder (arXiv 2502.12671) in flax.nnx: parameters, forward pass, head and loss."""

from m1jax.model.decoder import Abstract, Decoder, abstract, create, initialise
from m1jax.model.head import Loss, cross_entropy, log_likelihood, norm_head
from m1jax.model.layout import LayerPath, Layout, layout

__all__ = [
    "Abstract",
    "Decoder",
    "LayerPath",
    "Layout",
    "Loss",
    "abstract",
    "create",
    "cross_entropy",
    "initialise",
    "layout",
    "log_likelihood",
    "norm_head",
]
