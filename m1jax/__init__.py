"""m1jax: Baichuan-M1 language models, from raw text to a checkpoint that PyTorch users load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import os

    from m1jax.generate.engine import LanguageModel
    from m1jax.tokenizer import Tokenizer

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str],
    dtype: Literal["float32", "bfloat16"] | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> tuple[LanguageModel, Tokenizer | None]:
    """The model and tokenizer of a folder: a run's (its newest checkpoint), an imported one, or a Hugging Face one.

    `model(tokens, segment_ids=None, positions=None)` gives logits and `model.generate(tokens, max_new_tokens=…,
    temperature=0.0)` tokens. `dtype` is that of parameters and computing, by default both as they were trained or
    stored. `adapter` is a folder of PEFT's with a LoRA of a Hugging Face model, which is merged into it. The tokenizer
    is None where the folder holds none. Raises m1jax.errors.UserError where `path` is none of these, or is damaged.
    """
    from pathlib import Path

    from m1jax.loading import load as load_folder

    return load_folder(Path(path), dtype=dtype, adapter=None if adapter is None else Path(adapter))
