"""Opening a run's packed rows as its curriculum."""

from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.errors import UserError
from m1jax.rows import packed
from m1jax.rows.manifest import Manifest
from m1jax.rows.packed import Stores
from m1jax.text.documents import PAIR, WHOLE
from m1jax.tokenizer import chat as chats


def open_curriculum(config: RunConfig) -> tuple[Curriculum, Stores]:
    """The run's curriculum over its packed rows, and the row stores that it reads.

    Raises UserError for missing or broken rows, a mixture that names no source, a source that would be read too often,
    a tokenizer larger than the model, conversations that the run's tokenizer would not write as the rows have them, and
    a mean over conversations of text that is none.
    """
    manifest = packed.load_manifest(config.rows_address)
    if manifest.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the rows in {config.rows_address} use {manifest.vocab_size} tokens, but model.vocab_size is "
            f"{config.model.vocab_size}: raise it, or train a smaller tokenizer and pack again."
        )
    if manifest.chat_format and config.tokenizer.exists():
        _check_chat_format(config, manifest)
    curriculum = Curriculum(config.stages, manifest, config.seed, config.data.max_epochs)
    if config.train.loss_mean == "conversations":
        _check_conversations(curriculum)
    return curriculum, packed.open_stores(config.rows_address, curriculum.manifest, curriculum.used)


def _check_chat_format(config: RunConfig, manifest: Manifest) -> None:
    """Raises UserError where the model would be used with other ids around a message than it is trained with."""
    tokenizer = tokenizers.of_run(config)
    found = chats.fingerprint(tokenizer, config.data.chat_format or None)
    wanted, place = manifest.chat_format, config.rows_address
    if tokenizer.fingerprint != manifest.tokenizer:
        found, wanted = f"other ids ({tokenizer.fingerprint})", f"{wanted} by tokenizer {manifest.tokenizer}"
    if found != wanted:
        raise UserError(
            f"the conversations in {place} are written in {wanted}, but the tokenizer in {config.tokenizer} writes "
            f"{found}: restore its files and data.chat_format, or make corpus and rows again with "
            f"`m1 sft --conversations DIR`."
        )


def _check_conversations(curriculum: Curriculum) -> None:
    """Raises UserError where rows hold parts of documents: the mean of each would depend on where it was cut."""
    for _, source in sorted(curriculum.used):
        if curriculum.manifest.sources[source].columns.keys().isdisjoint((PAIR, WHOLE)):
            raise UserError(
                f"config key train.loss_mean = 'conversations', but source {source!r} holds text, which is cut to fit "
                f"rows: take it out of the mixture, or set the key to 'tokens'."
            )
