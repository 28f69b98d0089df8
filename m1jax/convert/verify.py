"""An export judged by somebody else's program: mlx-lm loads the folder and its logits are compared with ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m1jax.errors import UserError


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


def verify_with_mlx(
    folder: Path, prompts: Sequence[Sequence[int]], logits_of: Callable[[np.ndarray], Any]
) -> Agreement:
    """Compares mlx-lm's logits of prompts (token ids) with `logits_of(tokens (S,)) -> (S, V)`.

    mlx-lm (extra `quickstart`) loads the weights of the folder as any user's program would; no tokenizer is needed.
    Raises UserError where it is not installed.
    """
    try:
        import mlx.core as mx
        from mlx_lm.utils import load_model
    except ImportError as error:
        raise UserError(
            "mlx-lm is not installed: run `pip install 'm1jax[quickstart]'` to verify an export."
        ) from error
    theirs, _ = load_model(Path(folder))
    pairs = []
    for prompt in prompts:
        expected = np.asarray(theirs(mx.array([list(prompt)]))[0].astype(mx.float32))
        pairs.append((np.asarray(logits_of(np.asarray(prompt, np.int32)), np.float32), expected))
    difference = max(float(np.abs(ours - other).max()) for ours, other in pairs)
    hits = sum(int((ours.argmax(-1) == other.argmax(-1)).sum()) for ours, other in pairs)
    tokens = sum(len(prompt) for prompt in prompts)
    return Agreement(
        tokens=tokens,
        longest=max(len(prompt) for prompt in prompts),
        max_difference=difference,
        relative_difference=difference / max(float(np.abs(other).max()) for _, other in pairs),
        greedy_agreement=hits / tokens,
    )
