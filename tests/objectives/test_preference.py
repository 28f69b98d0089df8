"""The losses of preferences, packed and in chunks, against plain formulas on every answer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from m1jax import model
from m1jax.config import file as config_file
from m1jax.objectives.pairs import places
from m1jax.objectives.preference import Preference
from m1jax.objectives.reference import REFERENCE
from m1jax.parallel import mesh as meshes
from m1jax.train.objective import StageScalars
from tests.parallel import toy

STAGE = StageScalars(np.float32(1e4), np.bool_(False))
LENGTH = 48


def config_of(*changes):
    settings = ["objective=preference", "model.num_layers=2", "train.loss_chunk=8", *changes]
    return config_file.load(toy.TINY, settings)


def answers(seed, count):
    """(prompt, chosen, rejected) ids of pairs."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, 200, rng.integers(2, 7)) for _ in range(3)) for _ in range(count)]


def batch_of(rows):
    """Rows of pairs; pair numbers are those of a source, which begin anywhere."""
    names = ("tokens", "targets", "segment_ids", "positions", "pair", "side")
    found = {name: np.zeros((len(rows), LENGTH), np.int32) for name in names}
    found["weights"] = np.zeros((len(rows), LENGTH), np.float32)
    for r, pairs in enumerate(rows):
        at = segment = 0
        for number, (prompt, *both) in enumerate(pairs):
            for side, answer in zip((1, 0), both, strict=True):
                ids = np.concatenate([prompt, answer])
                segment += 1
                piece = slice(at, at + len(ids))
                found["tokens"][r, piece], found["segment_ids"][r, piece] = ids, segment
                found["positions"][r, piece] = np.arange(len(ids))
                found["targets"][r, piece] = [*ids[1:], 0]
                found["weights"][r, at + len(prompt) - 1 : at + len(ids) - 1] = 1
                found["pair"][r, piece], found["side"][r, piece] = number, side
                at += len(ids)
    return found


def alone(decoder, prompt, answer):
    """Logits (T, V) of the next token at every place of the answer, all at once."""
    ids = np.concatenate([prompt, answer])
    return decoder(jnp.asarray(ids)[None], rope_base=1e4)[0][len(prompt) - 1 : -1]


def by_formula(xp, logits, others, pairs, loss, beta, alpha, stopped):
    """The mean loss from the logits of policy and reference for every answer, with the functions of `xp`."""
    losses = []
    for (_, *answers), own, reference in zip(pairs, logits, others, strict=True):
        m, d = [], []
        for answer, p, q in zip(answers, own, reference, strict=True):
            log_p, log_q = (x - xp.log(xp.exp(x).sum(-1, keepdims=True)) for x in (p, q))
            at = np.arange(len(answer))
            m.append((log_p[at, answer] - log_q[at, answer]).sum())
            d.append((xp.exp(log_q) * (log_q - log_p)).sum())
        inside = m[0] - m[1]
        if loss == "tdpo1":
            inside -= d[1] - d[0]
        if loss == "tdpo2":
            inside -= alpha * (d[1] - stopped(d[0]))
        losses.append(xp.log1p(xp.exp(-beta * inside)))
    return sum(losses) / len(losses)


def different(params, scale=0.3):
    """Parameters a good way from these."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            leaf + scale * jax.random.normal(k, leaf.shape) * (leaf.std() + 0.02)
            for leaf, k in zip(leaves, keys, strict=True)
        ],
    )


def made(config):
    return Preference(config, meshes.make(config.mesh, jax.devices()[:1]))


@pytest.mark.parametrize("loss", ["dpo", "tdpo1", "tdpo2"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(loss):
    config = config_of(f"preference.loss={loss}", "preference.beta=0.3", "preference.alpha=0.7")
    objective = made(config)
    params = objective.initialise()
    reference = params.pop(REFERENCE)
    params = different(params)
    pairs = answers(0, 5)
    batch = batch_of([pairs[:2], pairs[2:4], pairs[4:]])
    graph = model.abstract(config.model).graphdef

    def packed(params):
        terms = objective.terms({**params, REFERENCE: reference}, batch, STAGE)
        return terms.loss.value, terms

    def all_logits(tree):
        return [[alone(nnx.merge(graph, tree), prompt, answer) for answer in both] for prompt, *both in pairs]

    others = all_logits(reference)

    def by_definition(params):
        return by_formula(jnp, all_logits(params), others, pairs, loss, 0.3, 0.7, jax.lax.stop_gradient)

    (value, terms), gradient = jax.jit(jax.value_and_grad(packed, has_aux=True))(params)
    wanted = jax.jit(jax.grad(by_definition))(params)
    logits = jax.tree.map(lambda x: np.asarray(x, np.float64), (all_logits(params), others))
    expected = by_formula(np, *logits, pairs, loss, 0.3, 0.7, lambda x: x)
    assert terms.loss.denominator == len(pairs)
    assert abs(float(value) - expected) < 1e-5 * abs(expected)
    for (path, own), other in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-4, atol=2e-5 * float(jnp.abs(other).max()), err_msg=str(path))
    lengths = [np.mean([len(pair[side]) for pair in pairs]) for side in (1, 2)]
    assert [float(terms.reported[f"length_{name}"].value) for name in ("chosen", "rejected")] == pytest.approx(lengths)


def test_at_the_beginning_nothing_is_preferred():
    objective = made(config_of())
    terms = jax.jit(objective.terms)(objective.initialise(), batch_of([answers(1, 2)]), STAGE)
    assert float(terms.loss.value) == pytest.approx(np.log(2), abs=1e-6)
    told = {name: float(ratio.value) for name, ratio in terms.reported.items()}
    assert all(abs(told[name]) < 1e-6 for name in ("reward_chosen", "reward_rejected", "kl_chosen", "kl_rejected"))


def test_a_pair_without_a_side_counts_for_nothing():
    objective = made(config_of())
    params = objective.initialise()
    params = {**different({n: p for n, p in params.items() if n != REFERENCE}), REFERENCE: params[REFERENCE]}
    pairs = answers(2, 2)
    whole, broken = batch_of([pairs[:1]]), batch_of([pairs])
    broken["weights"] *= ~((broken["pair"] == 1) & (broken["side"] == 0))
    terms = jax.jit(objective.terms)
    assert float(terms(params, broken, STAGE).loss.value) == pytest.approx(
        float(terms(params, whole, STAGE).loss.value), rel=1e-5
    )


def test_an_adapters_reference_is_the_model_without_it():
    config = config_of("train.lora.rank=2")
    objective = made(config)
    assert REFERENCE not in objective.shapes
    params = different(objective.initialise())
    pairs = answers(3, 2)
    terms = jax.jit(objective.terms)(params, batch_of([pairs]), STAGE)
    assert float(terms.reported["kl_chosen"].value) > 1e-4
    start = jax.jit(objective.terms)(objective.initialise(), batch_of([pairs]), STAGE)
    assert float(start.loss.value) == pytest.approx(np.log(2), abs=1e-6)


def test_nothing_of_the_reference_is_trained():
    objective = made(config_of())
    assert objective.trained("embed/weight") and not objective.trained(f"{REFERENCE}/embed/weight")


def test_places_of_pairs_begin_anywhere_and_end_with_the_row():
    pair = np.array([[7, 7, 7, 7, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0]])
    ids = np.array([[1, 1, 2, 2, 3, 4, 0, 0], [1, 2, 3, 3, 4, 4, 0, 0]])
    assert places(pair, ids).tolist() == [[1, 1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2, 2, 2]]
