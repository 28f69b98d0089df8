"""Texts that follow other text. Many tokenizers put a space before a text, which must not come before its later parts.

What a tokenizer does is found by looking at what it gives: the ids of a text behind another one are those that both
have together, less those of the other one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from m1jax.errors import UserError

# A text to stand before the others; what it is made of joins nothing that follows, in one tokenizer or another.
_LEADS = ("\n", ".", "0", "a", "。")
_PROBES = ("b", "在", " b", "1")


class Encoder(Protocol):
    """The part of a tokenizer that joins need."""

    def encode_arrays(self, texts: Sequence[str]) -> Sequence[NDArray[Any]]:
        """Ids of each text, nothing added."""


class Lead(NamedTuple):
    """A text behind which others are encoded as in the middle of a text, and its ids."""

    text: str
    ids: list[int]


def lead_of(tokenizer: Encoder) -> Lead | None:
    """The lead of a tokenizer; None where the beginning of a text is encoded like its middle."""
    for text in _LEADS:
        try:
            head, *rest = _lists(tokenizer, [text, *_PROBES])
            wholes = _lists(tokenizer, [text + probe for probe in _PROBES])
        except UserError:  # a vocabulary that lacks one of these characters, and a token for what is unknown
            continue
        if head and all(whole[: len(head)] == head for whole in wholes):
            middle = [whole[len(head) :] for whole in wholes]
            return None if middle == rest else Lead(text, head)
    return None


def _lists(tokenizer: Encoder, texts: Sequence[str]) -> list[list[int]]:
    return [np.asarray(ids).tolist() for ids in tokenizer.encode_arrays(texts)]


def continued(tokenizer: Encoder, texts: Sequence[str], lead: Lead | None) -> list[NDArray[Any]]:
    """Ids of texts that follow other text; `lead` is that of the tokenizer.

    Nothing is joined over the border. Where the lead and a text share a token the text is encoded as if it were alone.
    """
    if lead is None:
        return list(tokenizer.encode_arrays(texts))
    found: list[NDArray[Any]] = []
    for text, whole in zip(texts, tokenizer.encode_arrays([lead.text + text for text in texts]), strict=True):
        ids = np.asarray(whole)
        joined = ids[: len(lead.ids)].tolist() != lead.ids
        found.append(tokenizer.encode_arrays([text])[0] if joined else ids[len(lead.ids) :])
    return found
