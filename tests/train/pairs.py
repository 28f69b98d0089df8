"""An objective of two trees: chosen and rejected sequences of a row, judged against a frozen reference (DPO's form)."""

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.train.objective import TOKEN_COLUMNS, Column, Objective, Ratio, Terms

VOCAB, WIDTH, PAIRS = 300, 8, 2
"""Rows hold pairs 1 to PAIRS; pair 0 is padding. Side 1 is chosen, side 0 rejected."""
BETA = 0.1


class Preference(Objective):
    """-log sigmoid(beta · (margin of the policy - margin of the reference)), a mean over the pairs of the batch."""

    columns = {**TOKEN_COLUMNS, "pair": Column(jnp.int32), "side": Column(jnp.int32)}  # noqa: RUF012
    piece_columns = ("pair", "side")

    @property
    def shapes(self):
        return jax.eval_shape(self.initialise)

    @property
    def axes(self):
        own = {"embed": ("vocab", "embed"), "head": ("embed", "vocab")}
        return {**own, "reference": own}

    def initialise(self):
        keys = jax.random.split(jax.random.key(3), 2)
        own = {"embed": jax.random.normal(keys[0], (VOCAB, WIDTH)), "head": jax.random.normal(keys[1], (WIDTH, VOCAB))}
        return {**own, "reference": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), own)}

    def trained(self, path):
        return not path.startswith("reference/")

    def terms(self, params, batch, stage):
        own = self._margins(params, batch)
        reference = self._margins(params["reference"], batch)
        present = self._of_pairs(jnp.ones_like(batch["weights"]), batch) > 0
        losses = -jax.nn.log_sigmoid(BETA * (own - reference)) * present
        right = (own > reference) * present
        count = present.sum().astype(jnp.float32)
        return Terms(Ratio(losses.sum(), count), {"accuracy": Ratio(right.sum().astype(jnp.float32), count)})

    def flops(self, positions):
        return 8.0 * 2 * WIDTH * VOCAB * positions.size

    def _margins(self, params, batch):
        """Summed log p of each pair's chosen sequence minus its rejected one, (B, PAIRS)."""
        logits = params["embed"].astype(jnp.float32)[batch["tokens"]] @ params["head"].astype(jnp.float32)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
        return self._of_pairs(log_p * batch["weights"] * jnp.where(batch["side"] == 1, 1.0, -1.0), batch)

    def _of_pairs(self, values, batch):
        return jnp.stack([(values * (batch["pair"] == pair)).sum(-1) for pair in range(1, PAIRS + 1)], -1)


def batch(seed, rows, length):
    """Rows of up to PAIRS pairs, each a chosen and a rejected sequence of any length, then padding."""
    rng = np.random.default_rng(seed)
    found = {
        name: np.zeros((rows, length), np.int32) for name in ("tokens", "segment_ids", "positions", "pair", "side")
    }
    for row in range(rows):
        start = 0
        for piece in range(int(rng.integers(1, PAIRS + 1)) * 2):
            end = start + int(rng.integers(2, length // (2 * PAIRS) + 1))
            found["tokens"][row, start:end] = rng.integers(0, VOCAB, end - start)
            found["segment_ids"][row, start:end] = piece + 1
            found["positions"][row, start:end] = np.arange(end - start)
            found["pair"][row, start:end] = piece // 2 + 1
            found["side"][row, start:end] = 1 - piece % 2
            start = end
    targets = np.roll(found["tokens"], -1, axis=1)
    ids = found["segment_ids"]
    has_target = (ids > 0) & (ids == np.roll(ids, -1, axis=1))
    has_target[:, -1] = False
    return {**found, "targets": targets * has_target, "weights": has_target.astype(np.float32)}


def reference_loss(params, found):
    """The mean loss in float64, pair by pair with NumPy alone."""

    def log_p(tree, row, mask):
        total = 0.0
        for t in np.flatnonzero(mask & (found["weights"][row] > 0)):
            logits = np.asarray(tree["embed"], np.float64)[found["tokens"][row, t]] @ np.asarray(
                tree["head"], np.float64
            )
            total += logits[found["targets"][row, t]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        return total

    losses = []
    for row in range(len(found["tokens"])):
        for pair in range(1, PAIRS + 1):
            masks = [(found["pair"][row] == pair) & (found["side"][row] == side) for side in (1, 0)]
            if masks[0].any():
                margins = [
                    log_p(tree, row, masks[0]) - log_p(tree, row, masks[1]) for tree in (params, params["reference"])
                ]
                losses.append(np.log1p(np.exp(-BETA * (margins[0] - margins[1]))))
    return np.mean(losses)
