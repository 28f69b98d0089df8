"""AdamW, or Adafactor's moments, behind the clip of a run."""

from typing import Any

import jax
import optax

from m1jax.config import OptimizerConfig, RunConfig
from m1jax.optim.clipping import guard, scaling
from m1jax.optim.schedules import learning_rate


def decay_mask(config: OptimizerConfig, params: Any) -> Any:
    """True for each parameter that weight decay acts on: none of `no_decay` stands in its path."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return not any(word in name for word in config.no_decay)

    return jax.tree_util.tree_map_with_path(decayed, params)


def make(config: RunConfig) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a run: the clip, AdamW on the run's schedule.

    Adam's second moment and the decay follow Loshchilov & Hutter (arXiv 1711.05101); the norm that is judged is the
    one before the clip. The schedule runs on the global step, given as `update(…, step=…)`, which a skipped step
    advances like any other.
    """
    settings = config.optimizer
    rule = optax.chain(
        scaling(settings.clip),
        _moments(settings),
        optax.add_decayed_weights(settings.weight_decay, mask=lambda params: decay_mask(settings, params)),
    )
    return _scaled(guard(rule, settings.clip), learning_rate(config))


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


def _scaled(
    inner: optax.GradientTransformationExtraArgs, rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """`inner`'s updates times minus the learning rate at the global step, which advances on a skipped step too."""

    def update(
        grads: optax.Updates, state: Any, params: optax.Params | None = None, *, step: Any, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(grads, state, params, **extra)
        scale = -rate(step)
        return jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
