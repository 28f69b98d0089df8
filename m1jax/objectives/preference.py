"""Learning from preferences: of two answers to a question one was preferred. A frozen reference holds the model.

With the answers w (chosen) and l (rejected) to the question x, over the tokens t of an answer y

    m(y) = Σ_t [log π(y_t) − log π_ref(y_t)]          D(y) = Σ_t KL(π_ref ‖ π), of the whole next-token distribution

    dpo      −log σ(β (m_w − m_l))                           Rafailov et al., arXiv 2305.18290, equation 7
    tdpo1    −log σ(β [(m_w − m_l) − (D_l − D_w)])           Zeng et al., arXiv 2404.11999, TDPO1
    tdpo2    −log σ(β [(m_w − m_l) − α (D_l − sg(D_w))])     the same, TDPO2; sg: no gradient

and the loss of a batch is the mean over its pairs. β m(y) is the reward that the policy has learned for y.

Legend: B rows of a batch, S tokens of a row, P = S + 1 places for the pairs of a row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig
from m1jax.model import adapters
from m1jax.model.flops import forward_flops
from m1jax.objectives.next_token import NextToken
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned
from m1jax.text.documents import PAIR, SIDE
from m1jax.train.objective import TOKEN_COLUMNS, Batch, Column, Objective, Ratio, StageScalars, Terms

Array = jax.Array

REFERENCE = "reference"
"""The tree of the reference beside that of the model, where it is one of its own."""
_COLUMNS: Mapping[str, Column] = {**TOKEN_COLUMNS, PAIR: Column(jnp.int32), SIDE: Column(jnp.int32)}


class Preference(Objective):
    """The mean loss of pairs, as `preference.loss` names it.

    The reference is the model that the run begins with: a frozen tree of its own or, where only the factors of an
    adapter are trained, the model without them.
    """

    columns = _COLUMNS
    piece_columns = (PAIR, SIDE)

    def __init__(self, config: RunConfig, mesh: Mesh):
        """`mesh` is that of the step, whose devices need not exist."""
        self._config = config
        self._policy = NextToken(config, mesh)
        self._apart = not config.train.lora.rank or bool(config.train.trained)
        self._plain = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh))

    @property
    def shapes(self) -> dict[str, Any]:
        """The model's parameters, and the reference's under `reference`."""
        own = self._policy.shapes
        if not self._apart:
            return own
        dtype = self._config.train.frozen_dtype
        kept = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), self._plain.shapes)
        return {**own, REFERENCE: kept}

    @property
    def axes(self) -> dict[str, Any]:
        """Their logical axes."""
        return {**self._policy.axes, **({REFERENCE: self._plain.axes} if self._apart else {})}

    def initialise(self) -> dict[str, Any]:
        """The model that the run's seed makes, twice."""
        own = self._policy.initialise()
        return self._with_reference(own, adapters.without(own))

    def begin(self, read: Callable[[Any], Any], target: Any) -> Any:
        """The model that the run begins with, and the reference, which is the same."""
        own = read({name: part for name, part in target.items() if name != REFERENCE})
        return {**own, REFERENCE: read(target[REFERENCE])} if self._apart else own

    def trained(self, path: str) -> bool:
        """As the model's, and nothing of the reference."""
        return not path.startswith(f"{REFERENCE}/") and self._policy.trained(path)

    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """Sums over pairs: the loss, and what was learned of both answers.

        Reported are accuracy (the share of pairs whose chosen answer has the larger reward; equal ones count half),
        reward_chosen and reward_rejected (β m), kl_chosen and kl_rejected (nats a token), length_chosen and
        length_rejected (tokens).
        """
        train, settings = self._config.train, self._config.preference
        own = {name: part for name, part in params.items() if name != REFERENCE}
        reference: model.Decoder = nnx.merge(
            self._plain.graphdef, params[REFERENCE] if self._apart else adapters.without(own)
        )
        given = batch["tokens"], batch["segment_ids"], batch["positions"]
        policy = self._policy.decoder(own)
        compared = policy.compare(
            policy.hidden(*given, rope_base=stage.rope_base, remat=train.remat, unroll=train.unroll),
            reference,
            jax.lax.stop_gradient(reference.hidden(*given, rope_base=stage.rope_base, unroll=train.unroll)),
            batch["targets"],
            chunk=train.loss_chunk,
        )
        weights, pair = batch["weights"], places(batch[PAIR], batch["segment_ids"])
        chosen, rejected = weights * (batch[SIDE] == 1), weights * (batch[SIDE] == 0)
        length_w, length_l = _of_pairs(chosen, pair), _of_pairs(rejected, pair)
        whole = ((length_w > 0) & (length_l > 0)).astype(jnp.float32)
        learned = compared.log_p - compared.reference_log_p
        m_w, m_l = _of_pairs(chosen * learned, pair), _of_pairs(rejected * learned, pair)
        d_w, d_l = (_of_pairs(side * compared.divergence, pair) for side in (chosen, rejected))
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

    def kind_of(self, path: tuple[Any, ...]) -> str:
        """As the model's."""
        return self._policy.kind_of(path)

    def flops(self, positions: np.ndarray) -> float:
        """The model forward and backward, and the reference forward."""
        return self._policy.flops(positions) + forward_flops(self._config.model, positions)

    def _with_reference(self, own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        if not self._apart:
            return own
        like = self.shapes[REFERENCE]
        return {**own, REFERENCE: jax.tree.map(lambda leaf, kept: leaf.astype(kept.dtype), other, like)}


def places(pair_BS: Array, segment_ids_BS: Array) -> Array:
    """The place (B, S) int32 of each token's pair in its row, from 1; the documents of a pair are side by side.

    Padding has that of the last pair: its weight is 0.
    """
    before_ids, before_pair = (jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in (segment_ids_BS, pair_BS))
    starts = (segment_ids_BS > 0) & ((before_ids == 0) | (pair_BS != before_pair))
    return jnp.cumsum(starts, axis=1, dtype=jnp.int32)


def _of_pairs(values_BS: Array, place_BS: Array) -> Array:
    """Sums over the tokens of each pair, (B, P)."""
    return jax.vmap(lambda values, place: jax.ops.segment_sum(values, place, values.shape[0] + 1))(values_BS, place_BS)
