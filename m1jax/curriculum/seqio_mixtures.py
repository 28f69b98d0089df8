"""A stage's mixture as a seqio.Mixture of registered sources (text/seqio_tasks.py); needs the extra `m1jax[data]`."""

from collections.abc import Mapping
from typing import Any

from m1jax.curriculum.mixture import source_shares
from m1jax.errors import UserError
from m1jax.rows.manifest import Manifest
from m1jax.text.seqio_tasks import task_name
from m1jax.tokenizer.seqio_vocabulary import import_seqio


def register_mixture(name: str, weights: Mapping[str, float], manifest: Manifest) -> Any:
    """Registers a stage's mixture as a seqio.Mixture of the tasks that `register` made, and returns it.

    `weights` are a stage's: shares of tokens by source or domain. seqio draws examples, so that a source's rate is its
    share over its tokens a document in `manifest`. Read it with `num_epochs=None`: a mixture of one epoch ends when any
    of its tasks does. Raises UserError where a weight fits no source, or `register` was
    not called.
    """
    seqio, _ = import_seqio()
    shares = source_shares(name, weights, manifest.sources)
    rates: dict[str, float] = {}
    for source, share in shares.items():
        packed = manifest.sources[source]
        task = task_name(packed.of or source)
        if task not in seqio.TaskRegistry.names():
            raise UserError(
                f"seqio task {task!r} is not registered: call m1jax.text.seqio_tasks.register(corpus) first."
            )
        rates[task] = rates.get(task, 0.0) + share * packed.documents / packed.tokens
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, list(rates.items()))
