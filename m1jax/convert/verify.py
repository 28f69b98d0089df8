"""A checkpoint read by another program: it loads the folder, and its logits are compared with ours.

mlx-lm is somebody else's program and is preferred. It knows NormHead and a head of its own only, and reads safetensors:
other checkpoints are compared with the PyTorch model that our exports carry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m1jax.errors import UserError

Logits = Callable[[np.ndarray], Any]
"""tokens (S,) to logits (S, V)."""


class CannotLoadError(Exception):
    """Another program does not read a folder that m1jax reads."""


@dataclass(frozen=True)
class Agreement:
    """How far two programs' logits lie apart over all positions of all prompts."""

    tokens: int
    longest: int
    """Tokens of the longest prompt; above the window, the window was put to the test."""
    max_difference: float
    """Largest absolute difference of a logit."""
    relative_difference: float
    """The same over the largest absolute logit."""
    greedy_agreement: float
    """Share of positions where both find the same token likeliest."""


def verify_with_mlx(folder: Path, prompts: Sequence[Sequence[int]], logits_of: Logits) -> Agreement:
    """Compares mlx-lm's logits of prompts (token ids) with those of `logits_of`.

    mlx-lm (extra `quickstart`) loads the weights of the folder as any user's program would, and computes in float32; no
    tokenizer is needed. Raises UserError where it is not installed, CannotLoadError where it does not know a tensor or
    a key of the folder.
    """
    try:
        import mlx.core as mx
        from mlx_lm.utils import load_model
    except ImportError as error:
        raise UserError("mlx-lm is not installed: run `pip install 'm1jax[quickstart]'` to verify logits.") from error
    try:
        model, _ = load_model(Path(folder))
    except (ValueError, TypeError) as error:
        raise CannotLoadError(str(error)) from error
    model.set_dtype(mx.float32)
    return _agreement(prompts, logits_of, lambda tokens: model(mx.array(tokens[None].tolist()))[0].astype(mx.float32))


def verify_with_torch(folder: Path, prompts: Sequence[Sequence[int]], logits_of: Logits) -> Agreement:
    """The same by our own PyTorch model under transformers, in float32; no code of the folder runs.

    Raises UserError where torch or transformers is not installed.
    """
    try:
        import torch
        from transformers.utils import logging

        from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM
    except ImportError as error:
        raise UserError(
            "torch or transformers is not installed: run `pip install torch transformers` to verify the logits of this "
            "checkpoint."
        ) from error
    logging.disable_progress_bar()
    model = BaichuanM1ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def theirs(tokens: np.ndarray) -> Any:
        with torch.no_grad():
            return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()

    return _agreement(prompts, logits_of, theirs)


def _agreement(prompts: Sequence[Sequence[int]], ours: Logits, theirs: Logits) -> Agreement:
    rows = [np.asarray(prompt, np.int32) for prompt in prompts]
    pairs = [(np.asarray(ours(row), np.float32), np.asarray(theirs(row))) for row in rows]
    difference = max(float(np.abs(mine - other).max()) for mine, other in pairs)
    hits = sum(int((mine.argmax(-1) == other.argmax(-1)).sum()) for mine, other in pairs)
    tokens = sum(len(row) for row in rows)
    return Agreement(
        tokens=tokens,
        longest=max(len(row) for row in rows),
        max_difference=difference,
        relative_difference=difference / max(float(np.abs(other).max()) for _, other in pairs),
        greedy_agreement=hits / tokens,
    )
