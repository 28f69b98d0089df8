"""The reward model's loss on packed pairs, against every answer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from m1jax import model
from m1jax.config import file as config_file
from m1jax.objectives.reward import BINS, SCORE, Reward, bin_name, calibration, last_tokens
from m1jax.parallel import mesh as meshes
from tests.objectives.test_preference import STAGE, answers, batch_of, different
from tests.parallel import toy


def made(*changes):
    settings = ["objective=reward", "model.num_layers=2", *changes]
    config = config_file.load(toy.TINY, settings)
    return config, Reward(config, meshes.make(config.mesh, jax.devices()[:1]))


def test_the_loss_and_its_gradient_are_those_of_the_formula():
    config, objective = made("reward.margin=0.2", "reward.center=0.1")
    params = different(objective.initialise())
    params[SCORE] = {"weight": jax.random.normal(jax.random.key(3), (config.model.hidden,)), "bias": jnp.float32(0.3)}
    pairs = answers(0, 3)
    batch = batch_of([pairs[:2], pairs[2:]])
    graph = model.abstract(config.model).graphdef

    def packed(params):
        terms = objective.terms(params, batch, STAGE)
        return terms.loss.value, terms

    def score(params, ids):
        decoder = nnx.merge(graph, {name: part for name, part in params.items() if name != SCORE})
        hidden = decoder.hidden(jnp.asarray(ids)[None], rope_base=1e4)[0, -1]
        return hidden @ params[SCORE]["weight"] + params[SCORE]["bias"]

    def by_definition(params):
        losses = []
        for prompt, *both in pairs:
            chosen, other = (score(params, np.concatenate([prompt, answer])) for answer in both)
            losses.append(jnp.log1p(jnp.exp(-(chosen - other - 0.2))) + 0.1 * (chosen + other) ** 2)
        return sum(losses) / len(losses)

    (value, terms), gradient = jax.jit(jax.value_and_grad(packed, has_aux=True))(params)
    expected, wanted = jax.jit(jax.value_and_grad(by_definition))(params)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for (path, own), other in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-4, atol=2e-5 * float(jnp.abs(other).max()), err_msg=str(path))
    scores = [[float(score(params, np.concatenate([prompt, answer]))) for answer in both] for prompt, *both in pairs]
    assert float(terms.reported["accuracy"].value) == pytest.approx(
        np.mean([chosen > other for chosen, other in scores])
    )
    assert float(terms.reported["reward_chosen"].value) == pytest.approx(np.mean([w for w, _ in scores]), rel=1e-4)


def test_calibration_puts_every_pair_into_one_bin():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([[0.5, 0.6, 0.9, 1.0], rng.uniform(0.5, 1, 40)]).astype(np.float32)
    correct, counted = rng.integers(0, 3, 44) / 2, (rng.random(44) < 0.8).astype(np.float32)
    found = {name: float(ratio.value) for name, ratio in calibration(confidence, correct, counted).items()}
    edges = np.array([*BINS[1:], np.inf], np.float32)
    place = np.searchsorted(edges, confidence, side="right")
    for number in range(len(BINS)):
        own = (place == number) & (counted > 0)
        assert own.any()
        name = bin_name(number)
        assert found[f"{name}/share"] == pytest.approx(own.sum() / counted.sum())
        assert found[f"{name}/confidence"] == pytest.approx(confidence[own].mean(), rel=1e-6)
        assert found[f"{name}/correct"] == pytest.approx(correct[own].mean(), rel=1e-6)


def test_a_pair_without_a_side_counts_for_nothing():
    _, objective = made()
    batch = batch_of([answers(1, 1)])
    batch["side"][:] = 1
    terms = jax.jit(objective.terms)(objective.initialise(), batch, STAGE)
    assert float(terms.loss.denominator) == 0


def test_the_models_own_head_is_left_as_it_is():
    _, objective = made()
    assert objective.trained("score/weight") and objective.trained("embed/weight")
    assert not objective.trained("head/weight")


def test_last_tokens_are_those_of_each_segment_and_never_of_padding():
    ids = jnp.array([[1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1]])
    assert last_tokens(ids).tolist() == [[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1]]
