"""Encoding by tiktoken, several times as fast as `tokenizers`, where the merges allow the same ids.

tiktoken joins whichever neighbours spell a token, lowest id first, and takes a whole word that is a token at once. A
BPE joins only the pairs on its list. Both come to the same ids where every token comes from one merge, of two tokens
made before it, and its own letters are encoded to it: whatever stands between a token's two ends in a text is then
joined there as it is alone.
"""

from collections.abc import Sequence

import tiktoken
import tokenizers

from m1jax.tokenizer.layout import BYTE_CHARACTERS, FIRST_MERGE, NUM_SPECIAL, WORDS, Merges, as_bytes, vocabulary


def allowed(merges: Merges, backend: tokenizers.Tokenizer) -> bool:
    """Whether tiktoken gives the ids of `backend`, a pipeline of WORDS over these merges."""
    ids = vocabulary(merges)
    if len(ids) != FIRST_MERGE + len(merges):
        return False
    for rank, (left, right) in enumerate(merges, FIRST_MERGE):
        if not all(NUM_SPECIAL <= ids.get(part, rank) < rank for part in (left, right)):
            return False
    tokens: Sequence[str] = [left + right for left, right in merges]
    return all(len(backend.model.tokenize(token)) == 1 for token in tokens)


def encoding(merges: Merges) -> tiktoken.Encoding:
    """The encoder; its ids are those of the merges."""
    tokens = (*BYTE_CHARACTERS, *(left + right for left, right in merges))
    ranks = {as_bytes(token): i for i, token in enumerate(tokens, NUM_SPECIAL)}
    return tiktoken.Encoding("m1jax", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
