"""Bits per byte on held-out documents: comparable between models with any tokenizers.

bits per byte = −Σ log2 p(target) / Σ UTF-8 bytes of the targets. Documents are cut as training cuts them: tokens and
EOS, long documents in pieces that begin by repeating one token, so that every token but a document's first is a
target exactly once. The first token has nothing before it and is no target for any model: neither its bits nor its
bytes count. EOS is a target whose bits count; it has no bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from m1jax.config.domains import ordered
from m1jax.evaluate.scoring import TargetLogprobs, Tokens, sequence_logprobs
from m1jax.rows.packing import split


@dataclass(frozen=True)
class Bits:
    """What a model needs to write down the targets of some documents."""

    bits: float
    bytes: int
    targets: int

    @property
    def per_byte(self) -> float:
        """Bits per byte; NaN where there was no byte."""
        return self.bits / self.bytes if self.bytes else math.nan

    @property
    def nats_per_target(self) -> float:
        """Mean loss, nats a target; NaN where there was no target."""
        return self.bits * math.log(2) / self.targets if self.targets else math.nan

    def __add__(self, other: "Bits") -> "Bits":
        return Bits(self.bits + other.bits, self.bytes + other.bytes, self.targets + other.targets)


def take(documents: Sequence[Tokens], max_tokens: int, seed: int) -> Iterator[Tokens]:
    """Documents in a seeded order until they hold `max_tokens`; the last one is cut off there, without an EOS."""
    left = max_tokens
    for index in np.random.default_rng(seed).permutation(len(documents)):
        if left <= 0:
            return
        yield documents[index][:left]
        left -= len(documents[index])


def cut(document: Tokens, row_length: int) -> Iterator[Tokens]:
    """Pieces of at most `row_length` tokens, each beginning with the last token of the one before, as in training."""
    for offset, length in split(len(document), row_length):
        yield document[offset : offset + length]


def bits_per_byte(
    documents: Mapping[str, Sequence[Tokens]],
    target_logprobs: TargetLogprobs,
    token_bytes: Sequence[int],
    *,
    row_length: int,
    batch_rows: int,
    max_tokens: int,
    seed: int = 0,
) -> dict[str, Bits]:
    """Bits and bytes by source, over at most `max_tokens` tokens of each source.

    `documents` are token ids with EOS at the end, by source; `token_bytes` is the UTF-8 length of each id, 0 for EOS.
    The choice of documents depends on the source's name, its documents and the seed alone, so that every model meets
    the same ones. Raises UserError where the model answers with something that is no number.
    """
    bytes_V = np.asarray(token_bytes, np.int64)
    pieces: list[Tokens] = []
    source_of: list[str] = []
    for source, texts in documents.items():
        for document in take(texts, max_tokens, seed + crc32(source.encode())):
            for piece in cut(document, row_length):
                pieces.append(piece)
                source_of.append(source)
    scored = sequence_logprobs(pieces, target_logprobs, (row_length,), row_length * batch_rows)
    found = {source: Bits(0.0, 0, 0) for source in documents}
    for source, piece, logprobs in zip(source_of, pieces, scored, strict=True):
        nats = -float(logprobs.sum(dtype=np.float64))
        found[source] += Bits(nats / math.log(2), int(bytes_V[np.asarray(piece[1:])].sum()), len(piece) - 1)
    return found


def by_domain(found: Mapping[str, Bits], domains: Mapping[str, str], order: Sequence[str]) -> dict[str, Bits]:
    """Sums over the sources of each domain, the domains as `order` lists them.

    `domains` maps a source to its domain; a source weighs by the bytes scored of it.
    """
    totals = {domain: Bits(0.0, 0, 0) for domain in ordered((domains[source] for source in found), order)}
    for source, bits in found.items():
        totals[domains[source]] += bits
    return totals
