"""Long context in fine-tuning: text around conversations (data.long_context)."""

from collections.abc import Sequence
from dataclasses import dataclass

from m1jax.config.stages import bounded
from m1jax.errors import UserError


@dataclass(frozen=True)
class LongContextConfig:
    """Text that has nothing to do with a conversation is put around its first question; it is read, not learned."""

    text: str = ""
    """Folder of that text: a corpus made by `m1 corpus`, or .txt, .jsonl and .parquet files; empty: none."""
    share: float = bounded(0.0, default=0.0)
    """Of the conversations, 1.0 for all; which ones is decided by the hash of what they say."""
    length: int = bounded(0, default=0)
    """Tokens that such a conversation is filled up to; 0: a row of the shortest of data.row_lengths."""


def check_long_context(found: LongContextConfig, row_lengths: Sequence[int]) -> None:
    """Raises UserError where data.long_context is half given, or longer than the rows."""
    if found.share > 1:
        raise UserError(f"config key data.long_context.share must be at most 1, got {found.share}.")
    if bool(found.text) != (found.share > 0):
        raise UserError(
            f"config keys data.long_context.text = {found.text!r} and data.long_context.share = {found.share} belong "
            f"together: name a folder and a share above 0, or neither."
        )
    if found.length > min(row_lengths):
        raise UserError(
            f"config key data.long_context.length = {found.length} exceeds the shortest of data.row_lengths = "
            f"{list(row_lengths)}: lower it, or pack longer rows only."
        )
