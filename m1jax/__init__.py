"""m1jax: Baichuan-M1 language models, from raw text to a checkpoint that PyTorch users load."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from m1jax.data.tokenizer import Tokenizer
    from m1jax.generate.engine import LanguageModel

__version__ = "0.1.0"


def load(path: str | os.PathLike[str]) -> tuple[LanguageModel, Tokenizer | None]:
    """The model and tokenizer of a run's folder (its newest checkpoint) or of an exported one.

    `model(tokens)` gives logits and `model.generate(tokens, max_new_tokens=…, temperature=…)` tokens. Raises
    m1jax.errors.UserError where `path` is neither.
    """
    from pathlib import Path

    from m1jax.recipes.loading import load as load_folder

    return load_folder(Path(path))
