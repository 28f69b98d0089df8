"""What the backward pass keeps of a block and what it computes again, by name.

    none     keeps everything that it reads.
    dots     keeps the results of the projections and of attention (about 3 E + 3 F a token and layer); computes norms,
             RoPE, convolution and activations again.
    block    keeps each block's input (E a token and layer); computes the block again.
    offload  as block, but the inputs wait in the host's pinned memory; on CPU that is the same memory, and saves none.

Legend: E hidden, F FFN.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from m1jax.kernels.names import ATTENTION

PROJECTION = "projection"
"""Name of what a projection returns."""
_INPUT = "block_input"

_policies = jax.checkpoint_policies
_POLICIES: dict[str, Callable[..., Any]] = {
    "dots": _policies.save_only_these_names(PROJECTION, ATTENTION),
    "block": _policies.nothing_saveable,
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def block(function: Callable[..., jax.Array], remat: str, *, looped: bool) -> Callable[..., jax.Array]:
    """`function(state, x, …)` of one block under a policy; `looped` where it is the body of a loop.

    A loop keeps XLA from merging the second computation with the first, which must be forbidden elsewhere.
    """
    if remat == "none":
        return function

    def named(state: Any, x: jax.Array, *rest: Any) -> jax.Array:
        return function(state, checkpoint_name(x, _INPUT), *rest)

    return jax.checkpoint(named, policy=_POLICIES[remat], prevent_cse=not looped)
