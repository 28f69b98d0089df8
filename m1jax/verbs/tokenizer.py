"""`m1 tokenizer train`: the run's tokenizer, trained on one domain after the other."""

import argparse
from collections.abc import Sequence
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
from m1jax.tokenizer.parts import Part, parts_of
from m1jax.train.run.holder import check_free
from m1jax.verbs.arguments import CONFIG, Parser, add_config, config_of, example


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 tokenizer train {CONFIG}")
    add_config(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    train(config_of(args))


def train(config: RunConfig) -> None:
    """Trains the run's tokenizer on its corpus; does nothing if it exists, or if data.tokenizer names one.

    Raises UserError without a corpus, and where its text is too little for the vocabulary or lacks a domain.
    """
    console = consoles.make()
    if _is_existing(config.tokenizer):
        found = tokenizers.of_run(config)
        console.print(f"{config.tokenizer} is an existing tokenizer of {found.vocab_size:,} ids, used as it is.")
        return
    made = artefact.require(config.corpus, "corpus", "corpus")
    data = config.data
    parts = parts_of(config, {source["domain"] for source in made["sources"].values()})
    shares = [[part.domains, part.size] for part in parts]
    of = artefact.key(made["key"], data.vocab_size, shares, data.tokenizer_bytes)
    if artefact.is_whole(config.tokenizer, "tokenizer", of):
        console.print(f"{config.tokenizer} is already complete.")
        return
    check_free(config.journal, config.tokenizer)
    details: dict[str, Any] = {}
    with artefact.building(config.tokenizer, "tokenizer", of, details) as folder:
        decided, tokenizer = _train_parts(config, made["sources"], parts, console)
        tokenizer.save(folder)
        details |= {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size}
        details["parts"] = [{"domains": part.domains, "ids": ids} for part, ids in zip(parts, decided, strict=True)]
        details["bytes"] = taken_bytes(made["sources"], data.tokenizer_bytes)
    by_part = ", ".join(
        f"{ids:,} {'' if i else 'ids '}by {part.name} text"
        for i, (part, ids) in enumerate(zip(parts, decided, strict=True))
    )
    console.print(
        f"Byte-level BPE of {tokenizer.vocab_size:,} tokens ({by_part}; fingerprint {tokenizer.fingerprint})."
    )
    console.print(f"Tokenizer in {config.tokenizer}.")


def _is_existing(path: Path) -> bool:
    """Whether there is a tokenizer at `path` that m1jax did not train there."""
    return path.is_file() or (path.is_dir() and artefact.stamp(path) is None and any(path.iterdir()))


def _train_parts(
    config: RunConfig, sources: Sources, parts: Sequence[Part], console: Console
) -> tuple[list[int], TrainedTokenizer]:
    """How many ids each part decided, and the tokenizer.

    A part whose share the config leaves open may decide fewer, where its text holds too few tokens; the next one
    decides more.
    """
    if 0 < parts[0].ids <= FIRST_MERGE:
        raise UserError(
            f"config key data.vocab_parts.0.ids = {parts[0].ids} leaves no room beside special tokens and bytes, which "
            f"the first part includes: choose more than {FIRST_MERGE}."
        )
    tokenizer, decided = None, []
    for i, part in enumerate(parts):
        before = tokenizer.vocab_size if tokenizer else 0
        if part.size > before:
            text = texts(config.corpus, sources, part.domains, config.data.tokenizer_bytes)
            with console.status(f"training the tokenizer on {part.name} text"):
                tokenizer = (
                    tokenizers.extend(tokenizer, text, part.size) if tokenizer else tokenizers.train(text, part.size)
                )
        assert tokenizer is not None
        decided.append(tokenizer.vocab_size - before)
        if tokenizer.vocab_size < part.size and (part.ids or part is parts[-1]):
            raise _too_large(config, i, part, tokenizer.vocab_size, before)
    assert tokenizer is not None
    return decided, tokenizer


def _too_large(config: RunConfig, i: int, part: Part, size: int, before: int) -> UserError:
    """The error of a part whose text has fewer tokens than the part must decide."""
    if part.ids:
        what, key, wanted, found = f"{part.name} text", f"data.vocab_parts.{i}.ids", part.ids, size - before
    else:
        what, key, wanted, found = "text", "data.vocab_size", part.size, size
    return UserError(
        f"the {what} of {config.corpus} holds only {found} tokens that occur twice, fewer than {key} = "
        f"{wanted}: set {key}={found} or less, or bring more text."
    )
