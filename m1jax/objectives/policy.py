"""Policy optimisation: sampled continuations with advantages, and answers that are learned as they are.

With ρ_t = π(y_t) / π_old(y_t), advantages A_t and answers' weights a_t, the loss of a batch is a sum over tokens

    −w_t min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t)      Schulman et al., arXiv 1707.06347, equation 7
    −a_t log π(y_t)                                     the second term of ELO's gradient
    +w_t c_v ½ max((V_t − R_t)², (V'_t − R_t)²)         the critic, V' within `value_clip` of V_old
    +w_t c_kl k_t                                       k2 = ½ d², k3 = e^−d − 1 + d with d = log π − log π_ref
    −w_t c_h H_t                                        the entropy

divided as `policy.loss_mean` says: "tokens", by Σ (w + a); "sequences", by their number, so that the gradient is the
policy gradient itself; "sequence_means", each token's terms over its sequence's Σ (w + a), and then by the number of
sequences (GRPO, arXiv 2402.03300, equation 3). With A_t < 0 and `policy.dual_clip` c, −w_t A_t counts at most
c times (arXiv 1912.09729, equation 5). π_old and π are both the trainer's forward pass, so ρ is 1 at the first step.

In ELO (arXiv 2502.12671, equations 1 to 3) the thought's tokens have w = 1 and the advantage log π(A|Q, C) − b, the
answer's tokens a = 1.

Legend: B rows of a batch, S tokens of a row.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m1jax import model
from m1jax.objectives import scalar
from m1jax.objectives.next_token import of_conversations
from m1jax.objectives.reference import Referenced
from m1jax.train.objective import TOKEN_COLUMNS, Batch, Column, Ratio, StageScalars, Terms

Array = jax.Array

CRITIC = "critic"
"""The head's tree."""
_OF_SAMPLED = ("advantages", "returns", "old_log_p", "old_values", "reference_log_p")
ROLLOUT_COLUMNS: Mapping[str, Column] = {name: Column(jnp.float32) for name in ("answers", *_OF_SAMPLED)}
"""What an iteration adds to the columns of rows; `weights` is 1 for the tokens that were sampled."""
_COLUMNS: Mapping[str, Column] = {**TOKEN_COLUMNS, **ROLLOUT_COLUMNS}


class Scored(NamedTuple):
    """What the trainer's forward pass says of given tokens, each (B, S) float32; log-probabilities in nats."""

    log_p: Array
    reference_log_p: Array
    values: Array


class Policy(Referenced):
    """The loss of sampled continuations: see the head of this file."""

    columns = _COLUMNS
    heads = (CRITIC,)

    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """Sums over tokens.

        Reported are clip_share (of the sampled tokens those whose ratio was clipped), ratio_deviation (the mean of
        |log ρ|), kl (the mean of log π − log π_ref, nats a token), entropy (nats a token), value_loss and answer_loss
        (nats a token of an answer).
        """
        settings = self._config.policy
        decoder, hidden = self.read(params, batch, stage)
        found = decoder.describe(
            hidden, batch["targets"], chunk=self._config.train.loss_chunk, temperature=settings.temperature
        )
        values = scalar.values(params[CRITIC], hidden)
        weights, answers = batch["weights"], batch["answers"]
        # Where nothing was sampled nothing may come through, not even what is not finite.
        batch = {**batch, **{name: jnp.where(weights > 0, batch[name], 0.0) for name in _OF_SAMPLED}}
        advantages = batch["advantages"]
        log_ratio = found.log_p - batch["old_log_p"]
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
        gain = jnp.minimum(ratio * advantages, clipped * advantages)
        if settings.dual_clip:
            gain = jnp.where(advantages < 0, jnp.maximum(gain, settings.dual_clip * advantages), gain)
        above = found.log_p - batch["reference_log_p"]
        value_loss = self._value_loss(values, batch)
        each = -gain + settings.value_weight * value_loss - settings.entropy_weight * found.entropy
        if settings.kl == "k2_loss":
            each += settings.kl_weight * 0.5 * above**2
        elif settings.kl == "k3_loss":
            each += settings.kl_weight * (jnp.exp(-above) - 1 + above)
        share, denominator = self._shares(weights + answers, batch["segment_ids"])
        losses = weights * each - answers * found.log_p
        sampled = jnp.sum(weights)

        def mean(x: Array, over: Array = weights, count: Array = sampled) -> Ratio:
            return Ratio(jnp.sum(over * x), count)

        reported = {
            "clip_share": mean((ratio * advantages > clipped * advantages).astype(jnp.float32)),
            "ratio_deviation": mean(jnp.abs(log_ratio)),
            "kl": mean(above),
            "entropy": mean(found.entropy),
            "value_loss": mean(value_loss),
            "answer_loss": mean(-found.log_p, answers, jnp.sum(answers)),
        }
        return Terms(Ratio(jnp.sum(share * losses), denominator), jax.lax.stop_gradient(reported))

    def score(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Scored:
        """The same forward pass before the steps of an iteration, for the columns that begin with `old_`.

        `batch` needs the columns of rows only.
        """
        train, settings = self._config.train, self._config.policy
        given = batch["tokens"], batch["segment_ids"], batch["positions"]
        decoder, hidden = self.read(params, batch, stage)
        other = self.reference(params)
        reference = other.hidden(*given, rope_base=stage.rope_base, unroll=train.unroll)

        def log_p(of: model.Decoder, hidden: Array) -> Array:
            described = of.describe(hidden, batch["targets"], chunk=train.loss_chunk, temperature=settings.temperature)
            return described.log_p

        return Scored(log_p(decoder, hidden), log_p(other, reference), scalar.values(params[CRITIC], hidden))

    def _value_loss(self, values: Array, batch: Batch) -> Array:
        settings, returns, old = self._config.policy, batch["returns"], batch["old_values"]
        squared = (values - returns) ** 2
        if settings.value_clip:
            near = old + jnp.clip(values - old, -settings.value_clip, settings.value_clip)
            squared = jnp.maximum(squared, (near - returns) ** 2)
        return 0.5 * squared

    def _shares(self, counted: Array, segment_ids: Array) -> tuple[Array, Array]:
        """What each token's terms are multiplied by, and what their sum is divided by."""
        per_token, sequences = of_conversations(counted, segment_ids)
        if self._config.policy.loss_mean == "tokens":
            return jnp.ones_like(counted), jnp.sum(counted)
        if self._config.policy.loss_mean == "sequences":
            return jnp.ones_like(counted), sequences
        return per_token / jnp.where(counted > 0, counted, 1.0), sequences
