"""A reward model: a number for an answer, learned from pairs of which one answer was preferred.

With r(y) the number that a linear head gives the last token of a text (question and answer y), a pair's loss is

    −log σ(r_w − r_l − margin) + center · (r_w + r_l)²

the first term of Bradley and Terry (Biometrika 39, 1952), as in Ouyang et al., arXiv 2203.02155, equation 1; the second
keeps the numbers near 0 (Eisenstein et al., arXiv 2312.09244, section 2). The loss of a batch is the mean over pairs.

Legend: B rows of a batch, S tokens of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp

from m1jax.objectives import scalar
from m1jax.objectives.pairs import PAIR_COLUMNS, of_pairs, places
from m1jax.objectives.scalar import Headed
from m1jax.text.documents import PAIR, SIDE
from m1jax.train.objective import Batch, Ratio, StageScalars, Terms

Array = jax.Array

SCORE = "score"
"""The head's tree."""
BINS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Where the bins of a calibration begin: by σ(|r_w − r_l|), how sure the model is of the answer that it prefers."""


class Reward(Headed):
    """The mean loss of pairs; the answer's number is read at the last token of its text, EOS."""

    columns = PAIR_COLUMNS
    piece_columns = (PAIR, SIDE)
    heads = (SCORE,)

    def trained(self, path: str) -> bool:
        """All that the loss depends on: not the model's own head, unless it is the embedding too."""
        return super().trained(path) and not path.startswith("head/")

    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """Sums over pairs.

        Reported are accuracy (the share of pairs whose chosen answer has the larger number; equal ones count half),
        reward_chosen and reward_rejected (their numbers), squared (the mean of (r_w + r_l)²), and for each bin of
        σ(|r_w − r_l|) calibration/BIN/share (of the pairs), /confidence (its mean) and /correct (the accuracy there).
        """
        settings = self._config.reward
        ends = last_tokens(batch["segment_ids"])
        scores = ends * self.scores(params, batch, stage)
        pair = places(batch[PAIR], batch["segment_ids"])
        sides = [ends * (batch[SIDE] == side) * (batch["segment_ids"] > 0) for side in (1, 0)]
        r_w, r_l = (of_pairs(side * scores, pair) for side in sides)
        counted_w, counted_l = (of_pairs(side, pair) for side in sides)
        whole = ((counted_w == 1) & (counted_l == 1)).astype(jnp.float32)
        losses = -jax.nn.log_sigmoid(r_w - r_l - settings.margin) + settings.center * (r_w + r_l) ** 2
        pairs = jnp.sum(whole)

        def mean(values: Array) -> Ratio:
            return Ratio(jnp.sum(whole * values), pairs)

        correct = (r_w > r_l) + 0.5 * (r_w == r_l)
        reported = {
            **calibration(jax.nn.sigmoid(jnp.abs(r_w - r_l)), correct, whole),
            "accuracy": mean(correct),
            "reward_chosen": mean(r_w),
            "reward_rejected": mean(r_l),
            "squared": mean((r_w + r_l) ** 2),
        }
        return Terms(mean(losses), jax.lax.stop_gradient(reported))

    def scores(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Array:
        """The head's number at every token, (B, S) float32."""
        _, hidden = self.read(params, batch, stage)
        return scalar.values(params[SCORE], hidden)


def bin_name(number: int) -> str:
    """What a bin's numbers are reported under."""
    return f"calibration/{BINS[number]}"


def calibration(confidence: Array, correct: Array, counted: Array) -> dict[str, Ratio]:
    """By bin of `confidence` (0.5 to 1): its share of what is `counted`, and the means of confidence and `correct`.

    All three float32 of one shape; `counted` is 0 or 1. Where the bins' confidence and correctness agree, the numbers
    mean what they say (reliability diagram: DeGroot and Fienberg, The Statistician 32, 1983).
    """
    found = {}
    for number, low in enumerate(BINS):
        high = BINS[number + 1] if number + 1 < len(BINS) else jnp.inf
        inside = counted * (confidence >= low) * (confidence < high)
        count = jnp.sum(inside)
        found[f"{bin_name(number)}/share"] = Ratio(count, jnp.sum(counted))
        found[f"{bin_name(number)}/confidence"] = Ratio(jnp.sum(inside * confidence), count)
        found[f"{bin_name(number)}/correct"] = Ratio(jnp.sum(inside * correct), count)
    return found


def last_tokens(segment_ids_BS: Array) -> Array:
    """1 at the last token of each segment, 0 elsewhere and in padding: (B, S) float32."""
    following = jnp.pad(segment_ids_BS[:, 1:], ((0, 0), (0, 1)))
    return ((segment_ids_BS > 0) & (segment_ids_BS != following)).astype(jnp.float32)
