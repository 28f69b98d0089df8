"""Learning from preferences: of two answers to a question one was preferred. A frozen reference holds the model.

With the answers w (chosen) and l (rejected) to the question x, over the tokens t of an answer y

    m(y) = Σ_t [log π(y_t) − log π_ref(y_t)]          D(y) = Σ_t KL(π_ref ‖ π), of the whole next-token distribution

    dpo      −log σ(β (m_w − m_l))                           Rafailov et al., arXiv 2305.18290, equation 7
    tdpo1    −log σ(β [(m_w − m_l) − (D_l − D_w)])           Zeng et al., arXiv 2404.11999, TDPO1
    tdpo2    −log σ(β [(m_w − m_l) − α (D_l − sg(D_w))])     the same, TDPO2; sg: no gradient

and the loss of a batch is the mean over its pairs. β m(y) is the reward that the policy has learned for y.

Legend: B rows of a batch, S tokens of a row, P = S + 1 places for the pairs of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp

from m1jax.objectives.pairs import PAIR_COLUMNS, of_pairs, places
from m1jax.objectives.reference import Referenced
from m1jax.text.documents import PAIR, SIDE
from m1jax.train.objective import Batch, Ratio, StageScalars, Terms

Array = jax.Array


class Preference(Referenced):
    """The mean loss of pairs, as `preference.loss` names it; the reference: see m1jax.objectives.reference."""

    columns = PAIR_COLUMNS
    piece_columns = (PAIR, SIDE)

    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """Sums over pairs: the loss, and what was learned of both answers.

        Reported are accuracy (the share of pairs whose chosen answer has the larger reward; equal ones count half),
        reward_chosen and reward_rejected (β m), kl_chosen and kl_rejected (nats a token), length_chosen and
        length_rejected (tokens).
        """
        train, settings = self._config.train, self._config.preference
        policy, hidden = self.read(params, batch, stage)
        reference = self.reference(params)
        given = batch["tokens"], batch["segment_ids"], batch["positions"]
        compared = policy.compare(
            hidden,
            reference,
            jax.lax.stop_gradient(reference.hidden(*given, rope_base=stage.rope_base, unroll=train.unroll)),
            batch["targets"],
            chunk=train.loss_chunk,
        )
        weights, pair = batch["weights"], places(batch[PAIR], batch["segment_ids"])
        chosen, rejected = weights * (batch[SIDE] == 1), weights * (batch[SIDE] == 0)
        length_w, length_l = of_pairs(chosen, pair), of_pairs(rejected, pair)
        whole = ((length_w > 0) & (length_l > 0)).astype(jnp.float32)
        learned = compared.log_p - compared.reference_log_p
        m_w, m_l = of_pairs(chosen * learned, pair), of_pairs(rejected * learned, pair)
        d_w, d_l = (of_pairs(side * compared.divergence, pair) for side in (chosen, rejected))
        margin = m_w - m_l
        if settings.loss == "tdpo1":
            margin -= d_l - d_w
        elif settings.loss == "tdpo2":
            margin -= settings.alpha * (d_l - jax.lax.stop_gradient(d_w))
        losses = -jax.nn.log_sigmoid(settings.beta * margin)
        right = (m_w > m_l) + 0.5 * (m_w == m_l)
        pairs = jnp.sum(whole)

        def mean(values: Array, over: Array | None = None) -> Ratio:
            return Ratio(jnp.sum(whole * values), pairs if over is None else jnp.sum(whole * over))

        reported = {
            "accuracy": mean(right),
            "reward_chosen": mean(settings.beta * m_w),
            "reward_rejected": mean(settings.beta * m_l),
            "kl_chosen": mean(d_w, length_w),
            "kl_rejected": mean(d_l, length_l),
            "length_chosen": mean(length_w),
            "length_rejected": mean(length_l),
        }
        return Terms(mean(losses), jax.lax.stop_gradient(reported))
