"""Held-out documents as tokens: plain text, and what is none."""

import pytest

from m1jax.errors import UserError
from m1jax.evaluate import heldout
from m1jax.text.documents import DOCUMENT_SCHEMA, Document, Part, Table
from tests.tokenizer.chat.chat_tokenizers import OURS


def write(folder, document):
    with Table(folder / "a.parquet", DOCUMENT_SCHEMA) as table:
        table.write(document, 1)


def test_parts_of_text_are_read_as_one_text(tmp_path):
    write(tmp_path, Document.of_parts("a#1", [Part("fever? ", weight=0.0), Part("yes")], "a", "en", "general"))
    assert heldout.tokenized(tmp_path, OURS) == {"a": [[*OURS.encode("fever? yes"), OURS.eos_id]]}


def test_conversations_are_refused(tmp_path):
    """Their marks would be read as text."""
    parts = [Part("<C_Q>", (73,), 0.0), Part("fever?", weight=0.0)]
    write(tmp_path, Document.of_parts("a#1", [*parts, Part("<C_A>", (74,), 0.0), Part("yes")], "a", "en", "general"))
    with pytest.raises(UserError, match=r"holds conversations \(document a#1\).*set train\.validate_every to 0"):
        heldout.tokenized(tmp_path, OURS)
