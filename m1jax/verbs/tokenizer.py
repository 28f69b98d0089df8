"""`m1 tokenizer train`: the run's tokenizer, general text first, then medical."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.text.sampling import Sources, taken_bytes, texts
from m1jax.tokenizer import FIRST_MERGE, TrainedTokenizer
from m1jax.verbs.arguments import CONFIG, Parser, add_config, config_of, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 tokenizer train {CONFIG}")
    add_config(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    train(config_of(args))


def train(config: RunConfig) -> None:
    """Trains the run's tokenizer on its corpus; does nothing if it is there, or data.tokenizer names an existing one.

    Raises UserError without a corpus, and where its text is too little for the vocabulary or lacks a domain.
    """
    console = consoles.make()
    if _is_existing(config.tokenizer):
        found = tokenizers.of_run(config)
        console.print(f"{config.tokenizer} is an existing tokenizer of {found.vocab_size:,} ids, used as it is.")
        return
    made = artefact.require(config.corpus, "corpus", "corpus")
    data = config.data
    of = artefact.key(made["key"], data.vocab_size, data.general_vocab_size, data.tokenizer_bytes)
    if artefact.is_whole(config.tokenizer, "tokenizer", of):
        console.print(f"{config.tokenizer} is whole already.")
        return
    details: dict[str, Any] = {}
    with artefact.building(config.tokenizer, "tokenizer", of, details) as folder:
        general, tokenizer = _both_parts(config, made["sources"], console)
        tokenizer.save(folder)
        details |= {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "general_ids": general}
        details["bytes"] = taken_bytes(made["sources"], data.tokenizer_bytes)
    parts = f"{general:,} ids by general text, {tokenizer.vocab_size - general:,} by medical text"
    console.print(f"Byte-level BPE of {tokenizer.vocab_size:,} tokens ({parts}; fingerprint {tokenizer.fingerprint}).")
    console.print(f"Tokenizer in {config.tokenizer}.")


def _is_existing(path: Path) -> bool:
    """Whether a tokenizer lies at `path` that m1jax did not train there."""
    return path.is_file() or (path.is_dir() and artefact.stamp(path) is None and any(path.iterdir()))


def _both_parts(config: RunConfig, sources: Sources, console: Console) -> tuple[int, TrainedTokenizer]:
    """How many ids general text decided, and the tokenizer.

    Where the config leaves the share open, a corpus of one domain decides all ids.
    """
    data = config.data
    domains = {source["domain"] for source in sources.values()}
    if data.general_vocab_size > data.vocab_size:
        raise UserError(
            f"config key data.general_vocab_size = {data.general_vocab_size} is more than data.vocab_size = "
            f"{data.vocab_size}: lower it, or leave it 0."
        )
    for domain, wanted in (
        ("general", data.general_vocab_size > 0),
        ("medical", 0 < data.general_vocab_size < data.vocab_size),
    ):
        if wanted and domain not in domains:
            raise UserError(
                f"{config.corpus} holds no {domain} text, which data.general_vocab_size = {data.general_vocab_size} of "
                f"data.vocab_size = {data.vocab_size} asks for: add such text to the corpus, or leave the key 0."
            )
    first = "general" if "general" in domains else "medical"
    size = data.general_vocab_size or (max(data.vocab_size * 3 // 4, FIRST_MERGE + 1) if len(domains) > 1 else 0)
    size = min(size or data.vocab_size, data.vocab_size)
    with console.status(f"training the tokenizer on {first} text"):
        tokenizer = tokenizers.train(texts(config.corpus, sources, (first,), data.tokenizer_bytes), size)
    decided = tokenizer.vocab_size if first == "general" else 0
    if tokenizer.vocab_size < size and (size == data.vocab_size or data.general_vocab_size):
        raise _too_large(config, first, size, tokenizer.vocab_size)
    if size < data.vocab_size:
        with console.status("continuing the tokenizer on medical text"):
            further = texts(config.corpus, sources, ("medical",), data.tokenizer_bytes)
            tokenizer = tokenizers.extend(tokenizer, further, data.vocab_size)
        if tokenizer.vocab_size < data.vocab_size:
            raise _too_large(config, "whole", data.vocab_size, tokenizer.vocab_size)
    return decided, tokenizer


def _too_large(config: RunConfig, what: str, wanted: int, found: int) -> UserError:
    key = "vocab_size" if wanted == config.data.vocab_size else "general_vocab_size"
    return UserError(
        f"the {what} text of {config.corpus} holds only {found} tokens that occur twice, fewer than data.{key} = "
        f"{wanted}: set data.{key}={found} or less, or bring more text."
    )
