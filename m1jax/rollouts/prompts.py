"""Prompts of policy optimisation: the conversations of a corpus, up to their last answer."""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.text.corpus import check_ids
from m1jax.text.documents import Document, origin_of, read_documents
from m1jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, and what the conversation's own answer is."""

    name: str
    text: str
    ids: tuple[int, ...]
    reference: str
    answer_ids: tuple[int, ...]
    """The answer and what ends it."""


def of_folder(
    folder: Path, corpus: Path, tokenizer: Tokenizer, room: int, answer_room: int, only: Sequence[str] = ()
) -> list[Prompt]:
    """The prompts of a folder of a corpus's documents that have at most `room` tokens, in order.

    `answer_room` bounds prompt and answer together; `only` are patterns of file names, of which a conversation's must
    fit one. Raises UserError where no prompt fits, or the conversations were written with another tokenizer.
    """
    check_ids(corpus, artefact.stamp(corpus) or {}, tokenizer)
    found = [
        prompt
        for document in read_documents(folder)
        if not only or any(fnmatch.fnmatchcase(document.id.rpartition("#")[0], pattern) for pattern in only)
        if (prompt := of_document(document, tokenizer.eos_id))
    ]
    fitting = [
        prompt
        for prompt in found
        if len(prompt.ids) <= room and len(prompt.ids) + len(prompt.answer_ids) <= answer_room
    ]
    if not fitting:
        raise UserError(
            f"{folder} holds {len(found)} conversations, none with a question of at most {room} tokens: lengthen "
            f"stages.row_length, lower policy.max_new_tokens, or name others with policy.only."
        )
    return fitting


def of_document(document: Document, eos_id: int) -> Prompt | None:
    """A conversation's prompt; None for a document that is none, or has no learned answer at its end."""
    if any(part.text and not part.ids for part in document.parts):
        return None  # plain text, which has no turns
    parts = [part for part in document.parts if part.ids]
    last = max((i for i, part in enumerate(parts) if part.weight), default=None)
    if last is None:
        return None
    first = last
    while first and parts[first - 1].weight:
        first -= 1
    answer = parts[first : last + 1]
    ids = tuple(i for part in answer for i in part.ids)
    # What ends an answer is a mark of its own, or EOS, which packing puts behind the last part.
    closed = len(answer) > 1
    return Prompt(
        origin_of(document),
        "".join(part.text for part in parts[:first]),
        tuple(i for part in parts[:first] for i in part.ids),
        answer[0].text,
        ids if closed else (*ids, eos_id),
    )


def order(count: int, seed: int, first: int, number: int) -> Iterator[int]:
    """Indices of the prompts that places `first` to `first + number` of the run ask: every epoch all, shuffled."""
    places = np.arange(first, first + number)
    for epoch in np.unique(places // count).tolist():
        shuffled = np.random.default_rng([seed, epoch]).permutation(count)
        yield from shuffled[places[places // count == epoch] % count].tolist()
