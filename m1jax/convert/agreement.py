"""The comparison of logits with another program that import and export make: its prompts and its tolerances."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from m1jax.config import ModelConfig
from m1jax.convert import table
from m1jax.convert.source import Checkpoint
from m1jax.convert.verify import Agreement, CannotLoadError, Logits, verify_with_mlx, verify_with_torch
from m1jax.errors import UserError
from m1jax.tokenizer import Tokenizer

VERIFICATION = "verification.json"
"""File of an export that holds what another program found."""
# Longer than the window of the shipped small model, so that its edge is compared too.
VERIFIED_TOKENS = 320
TOLERANCE = 1e-3
"""Largest difference of a logit, over the largest logit, that passes for agreement in float32."""
# mlx-lm normalises the head in the dtype of the file: in bfloat16 each of its weights is off by up to 2^-9.
ROUNDED_HEAD_TOLERANCE = 1e-2


def prompts(config: ModelConfig, text: str | None, tokenizer: Tokenizer | None, place: Path) -> list[list[int]]:
    """Token ids to compare logits on: those of `text`, or two rows of random ones; `place` is named in errors."""
    if text is None:
        length = min(VERIFIED_TOKENS, config.max_positions)
        # The first ids may be special tokens, which a tokenizer may not hold at all.
        low = min(384, config.vocab_size // 2)
        return np.random.default_rng(0).integers(low, config.vocab_size, (2, length)).tolist()
    if tokenizer is None:
        raise UserError(f"{place} holds no tokenizer, which --prompt needs: leave the prompt out.")
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError("--prompt is empty: give it a sentence.")
    return [list(ids)]


def compare_logits(folder: Path, config: ModelConfig, rows: list[list[int]], ours: Logits) -> dict[str, Any]:
    """Compares the logits of a checkpoint's folder in another program with ours; raises UserError where they differ.

    mlx-lm where it can read the checkpoint, else the PyTorch model that exports carry, both in float32; so must `ours`.
    """
    name, tolerance, found = "mlx-lm", TOLERANCE, None
    if config.normalize_head and not config.tie_embeddings and any(folder.glob("*.safetensors")):
        # It knows no buffers beside the weights, and not every place that transformers write a setting to.
        with contextlib.suppress(CannotLoadError):
            found = verify_with_mlx(folder, rows, ours)
            if Checkpoint(folder).dtype(table.HEAD.name) != "float32":
                tolerance = ROUNDED_HEAD_TOLERANCE
    if found is None:
        name, found = "The PyTorch model of our exports", verify_with_torch(folder, rows, ours)
    if not found.relative_difference < tolerance:
        raise UserError(
            f"{name} finds logits that differ from ours by {found.relative_difference:.1e} of the largest: nothing was "
            f"written, please report this as a fault of m1jax."
        )
    return {**dataclasses.asdict(found), "agrees": True, "program": name, "sentence": _sentence(name, found)}


def _sentence(name: str, found: Agreement) -> str:
    return (
        f"{name} loads the folder and agrees: over {found.tokens} tokens its logits differ by at most "
        f"{found.max_difference:.1e} ({found.relative_difference:.1e} of the largest), and the likeliest token is the "
        f"same at {found.greedy_agreement:.1%} of the positions."
    )
