"""Loss and bits per byte on held-out documents, over exactly the targets that training would have.

Documents are cut as training cuts them: tokens and EOS, long documents in pieces that begin by repeating one token, so
that every token but a document's first is a target exactly once; a document that is never cut, such as a conversation,
is measured whole. The first token has nothing before it and is no target for any model: neither its bits nor its bytes
count. A target counts with its weight w in training, 1 throughout a text, 0 for what a conversation only shows:

    loss           = −Σ w ln p(target) / Σ w, nats a target; or the mean of this over conversations (train.loss_mean)
    bits per byte  = −Σ w log2 p(target) / Σ w · UTF-8 bytes of the target

Bits per byte compare models with any tokenizers: the bytes are those of the text that is learned. EOS and the marks of
a chat format, where they are learned, have bits that count and no bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple
from zlib import crc32

import numpy as np

from m1jax.config.domains import ordered
from m1jax.evaluate.scoring import TargetLogprobs, Tokens, sequence_logprobs
from m1jax.rows.packing import split


class Learned(NamedTuple):
    """A document as training reads it: ids with EOS at the end, and the weight of each of them as a target.

    `weights` is float32 of the length of `tokens`; `whole` says that it is never cut.
    """

    tokens: Tokens
    weights: np.ndarray
    whole: bool = False


@dataclass(frozen=True)
class Bits:
    """What a model needs to write down the targets of some documents: sums over targets, each times its weight."""

    bits: float
    bytes: float
    targets: float
    """Sum of the weights: the number of targets where each is 1."""
    means: float = 0.0
    """Sum over documents of each one's own loss, nats a target."""
    documents: int = 0
    """Those that have a target."""

    @property
    def per_byte(self) -> float:
        """Bits per byte; NaN where there was no byte."""
        return self.bits / self.bytes if self.bytes else math.nan

    def loss(self, mean: str = "tokens") -> float:
        """Nats a target, as `train.loss_mean` averages them; NaN where there was no target."""
        if not self.targets:
            return math.nan
        return self.means / self.documents if mean == "conversations" else self.bits * math.log(2) / self.targets

    def __add__(self, other: "Bits") -> "Bits":
        return Bits(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


NONE = Bits(0.0, 0.0, 0.0)


def take(documents: Sequence[Learned], max_tokens: int, seed: int) -> Iterator[Learned]:
    """Documents in a seeded order until they hold `max_tokens`.

    The last one is cut off there, without an EOS, unless it is never cut: then it is taken whole.
    """
    left = max_tokens
    for index in np.random.default_rng(seed).permutation(len(documents)):
        if left <= 0:
            return
        tokens, weights, whole = documents[index]
        yield documents[index] if whole else Learned(tokens[:left], weights[:left])
        left -= len(tokens)


def cut(document: Learned, row_length: int) -> Iterator[Learned]:
    """Pieces of at most `row_length` tokens, each beginning with the last token of the one before, as in training."""
    for offset, length in split(len(document.tokens), row_length):
        piece = slice(offset, offset + length)
        yield Learned(document.tokens[piece], document.weights[piece], document.whole)


def bits_per_byte(
    documents: Mapping[str, Sequence[Learned]],
    target_logprobs: TargetLogprobs,
    token_bytes: Sequence[int],
    *,
    row_length: int,
    batch_rows: int,
    max_tokens: int,
    seed: int = 0,
) -> dict[str, Bits]:
    """Bits and bytes by source, over at most `max_tokens` tokens of each source (see `take`).

    `token_bytes` is the UTF-8 length of each id, 0 for EOS. The choice of documents depends on the source's name, its
    documents and the seed alone, so that every model meets the same ones. Raises UserError where the model answers
    with something that is no number.
    """
    bytes_V = np.asarray(token_bytes, np.int64)
    pieces: list[Learned] = []
    owners: list[tuple[str, int]] = []
    for source, texts in documents.items():
        for number, document in enumerate(take(texts, max_tokens, seed + crc32(source.encode()))):
            for piece in cut(document, row_length):
                pieces.append(piece)
                owners.append((source, number))
    scored = sequence_logprobs([p.tokens for p in pieces], target_logprobs, (row_length,), row_length * batch_rows)
    sums: dict[tuple[str, int], Bits] = {}
    for owner, piece, logprobs in zip(owners, pieces, scored, strict=True):
        weights = piece.weights[1:].astype(np.float64)
        bits = -float((weights * logprobs).sum()) / math.log(2)
        size = float((weights * bytes_V[np.asarray(piece.tokens[1:])]).sum())
        sums[owner] = sums.get(owner, NONE) + Bits(bits, size, float(weights.sum()))
    found = dict.fromkeys(documents, NONE)
    for (source, _), one in sums.items():
        found[source] += replace(one, means=one.loss(), documents=1) if one.targets else one
    return found


def by_domain(found: Mapping[str, Bits], domains: Mapping[str, str], order: Sequence[str]) -> dict[str, Bits]:
    """Sums over the sources of each domain, the domains as `order` lists them.

    `domains` maps a source to its domain; a source weighs by the bytes scored of it.
    """
    totals = dict.fromkeys(ordered((domains[source] for source in found), order), NONE)
    for source, bits in found.items():
        totals[domains[source]] += bits
    return totals
