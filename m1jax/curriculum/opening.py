"""Opening a run's packed rows as its curriculum."""

from m1jax.config import RunConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.errors import UserError
from m1jax.rows import packed
from m1jax.rows.packed import Stores


def open_curriculum(config: RunConfig) -> tuple[Curriculum, Stores]:
    """The run's curriculum over its packed rows, and the row stores that it reads.

    Raises UserError for missing or broken rows, a mixture that names no source, a source that would be read too often,
    or a tokenizer larger than the model.
    """
    manifest = packed.load_manifest(config.rows_address)
    if manifest.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the rows in {config.rows_address} use {manifest.vocab_size} tokens, but model.vocab_size is "
            f"{config.model.vocab_size}: raise it, or train a smaller tokenizer and pack again."
        )
    curriculum = Curriculum(config.stages, manifest, config.seed, config.data.max_epochs)
    return curriculum, packed.open_stores(config.rows_address, curriculum.manifest, curriculum.used)
