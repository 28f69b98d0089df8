"""AdamW, or Adafactor's second moment under the same first."""

from typing import Any

import jax
import optax

from m1jax.config import OptimizerConfig


def adamw(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's moments, then decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101); no learning rate."""
    return optax.chain(
        _moments(settings),
        optax.add_decayed_weights(settings.weight_decay, mask=lambda params: decay_mask(settings, params)),
    )


def decay_mask(config: OptimizerConfig, params: Any) -> Any:
    """True for each parameter that weight decay acts on: no word of `no_decay` is in its path."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return not any(word in name for word in config.no_decay)

    return jax.tree_util.tree_map_with_path(decayed, params)


def _moments(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Adam's two moments, or Adafactor's second one under the same first.

    Factored, the second moment of a matrix is the product of its row and column means, decayed by 1 - t^-0.8, and the
    root mean square of an update is clipped to 1 (Shazeer & Stern, arXiv 1804.04235, algorithms 4 and 5); the first
    moment is of the update, as there, with Adam's correction of its start.
    """
    if settings.second_moment == "full":
        return optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=settings.eps)
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0), optax.ema(settings.b1, debias=True)
    )
