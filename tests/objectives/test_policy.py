"""The policy's loss against formulas in numpy, and ELO's gradient against its exact value by enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from m1jax import model
from m1jax.config import file as config_file
from m1jax.objectives.policy import CRITIC, Policy
from m1jax.objectives.reference import REFERENCE
from m1jax.parallel import mesh as meshes
from m1jax.rollouts import advantages, sequences
from tests.objectives.test_preference import STAGE, different
from tests.parallel import toy

LENGTH, COLUMNS = 48, ("advantages", "returns", "old_log_p", "old_values", "reference_log_p")


def made(*changes):
    settings = [
        "objective=policy", "model.num_layers=2", "train.loss_chunk=16", "policy.max_new_tokens=8", "policy.prompts=4",
        "policy.samples=4", "train.checkpoint_every=1", *changes,
    ]  # fmt: skip
    config = config_file.load(toy.TINY, settings)
    return Policy(config, meshes.make(config.mesh, jax.devices()[:1]))


def batch_of(count=6, seed=0):
    """Rows of three continuations with answers behind them, and numbers of every kind."""
    rng = np.random.default_rng(seed)
    some = [
        sequences.Continuation(*(rng.integers(3, 200, rng.integers(2, 5)).tolist() for _ in range(4)))
        for _ in range(count)
    ]
    rows = sequences.rows(some, count // 3, LENGTH)
    more = {name: rng.normal(size=rows.columns["tokens"].shape).astype(np.float32) for name in COLUMNS}
    return {**rows.columns, **more}


@functools.cache
def described():
    """(objective, parameters, batch, what a plain forward pass says of every target)."""
    objective = made("policy.temperature=0.7")
    params = different(objective.initialise())
    params[CRITIC] = {"weight": 0.1 * jax.random.normal(jax.random.key(1), params[CRITIC]["weight"].shape), "bias": 0.2}
    batch = batch_of()
    decoder = nnx.merge(
        model.abstract(objective._config.model).graphdef, {name: params[name] for name in objective.model_shapes}
    )
    given = batch["tokens"], batch["segment_ids"], batch["positions"]
    hidden = decoder.hidden(*given, rope_base=1e4)
    log_p = np.asarray(jax.nn.log_softmax(decoder.logits(hidden) / 0.7), np.float64)
    chosen = np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    values = np.asarray(hidden @ params[CRITIC]["weight"] + params[CRITIC]["bias"], np.float64)
    batch["old_log_p"] = (chosen + 0.3 * batch["old_log_p"]).astype(np.float32)
    batch["reference_log_p"] = (chosen + 0.3 * batch["reference_log_p"]).astype(np.float32)
    return params, batch, (chosen, -(np.exp(log_p) * log_p).sum(-1), values)


def by_formula(batch, said, mean, kl, dual):
    log_p, entropy, values = said
    w, a = batch["weights"], batch["answers"]
    ratio = np.exp(log_p - batch["old_log_p"])
    gain = np.minimum(ratio * batch["advantages"], np.clip(ratio, 0.8, 1.2) * batch["advantages"])
    if dual:
        gain = np.where(batch["advantages"] < 0, np.maximum(gain, dual * batch["advantages"]), gain)
    near = batch["old_values"] + np.clip(values - batch["old_values"], -0.2, 0.2)
    value = 0.5 * np.maximum((values - batch["returns"]) ** 2, (near - batch["returns"]) ** 2)
    d = log_p - batch["reference_log_p"]
    penalty = {"k1_reward": 0 * d, "k2_loss": d**2 / 2, "k3_loss": np.exp(-d) - 1 + d}[kl]
    each = w * (-gain + 0.1 * value + 0.05 * penalty - 0.01 * entropy) - a * log_p
    segments = [
        (row, number) for row, ids in enumerate(batch["segment_ids"]) for number in sorted(set(ids.tolist()) - {0})
    ]
    if mean == "tokens":
        return each.sum() / (w + a).sum()
    if mean == "sequences":
        return each.sum() / len(segments)
    means = []
    for row, number in segments:
        inside = batch["segment_ids"][row] == number
        means.append(each[row][inside].sum() / (w + a)[row][inside].sum())
    return np.mean(means)


@pytest.mark.parametrize(
    ("mean", "kl", "dual"),
    [("tokens", "k1_reward", 0), ("sequences", "k2_loss", 1.5), ("sequence_means", "k3_loss", 0)],
)
def test_the_loss_is_that_of_the_formula(mean, kl, dual):
    params, batch, said = described()
    objective = made(
        "policy.temperature=0.7", f"policy.loss_mean={mean}", f"policy.kl={kl}", f"policy.dual_clip={dual}",
        "policy.entropy_weight=0.01",
    )  # fmt: skip
    terms = jax.jit(objective.terms)(params, batch, STAGE)
    assert float(terms.loss.value) == pytest.approx(by_formula(batch, said, mean, kl, dual), rel=2e-4)
    log_p, entropy, _ = said
    weights = batch["weights"]
    assert float(terms.reported["entropy"].value) == pytest.approx((weights * entropy).sum() / weights.sum(), rel=1e-4)
    answered = -(batch["answers"] * log_p).sum() / batch["answers"].sum()
    assert float(terms.reported["answer_loss"].value) == pytest.approx(answered, rel=1e-4)


def test_the_scoring_before_the_steps_makes_the_first_ratio_one():
    params, batch, (log_p, _, values) = described()
    objective = made("policy.temperature=0.7")
    scored = jax.jit(objective.score)(params, batch, STAGE)
    np.testing.assert_allclose(scored.log_p, log_p, atol=2e-4)
    np.testing.assert_allclose(scored.values, values, atol=2e-4)
    fresh = {**batch, "old_log_p": np.asarray(scored.log_p), "reference_log_p": np.asarray(scored.reference_log_p)}
    terms = jax.jit(objective.terms)(params, fresh, STAGE)
    assert float(terms.reported["ratio_deviation"].value) < 1e-5
    assert float(terms.reported["clip_share"].value) == 0
    assert float(terms.reported["kl"].value) != 0


def test_nothing_comes_through_tokens_that_were_not_sampled():
    """Not even what is not finite."""
    params, batch, _ = described()
    objective = made("policy.temperature=0.7", "policy.kl=k3_loss")
    gradient = jax.jit(jax.grad(lambda params, batch: objective.terms(params, batch, STAGE).loss.value))
    spoilt = {**batch, **{name: np.where(batch["weights"] > 0, batch[name], 1e30) for name in COLUMNS}}
    for own, other in zip(*map(jax.tree.leaves, (gradient(params, batch), gradient(params, spoilt))), strict=True):
        assert bool((own == other).all())


def test_the_reference_is_not_trained_and_the_critic_is():
    objective = made()
    assert objective.trained("critic/weight") and not objective.trained(f"{REFERENCE}/embed/weight")
    assert objective.initialise()[CRITIC]["weight"].sum() == 0


# ELO: one token of thought, one of answer, so that every thought can be listed.

PROMPT, ANSWER, SAMPLES = [7, 8, 9], [11], 4


@functools.cache
def listed():
    """Of every thought: its log-probability, that of the answer behind it, and both along the exact gradient g."""
    objective = made("policy.loss_mean=sequences", "policy.kl_weight=0", "policy.value_weight=0")
    params = different(objective.initialise(), 0.5)
    config = objective._config.model
    graph = model.abstract(config).graphdef
    own = {name: params[name] for name in objective.model_shapes}
    thoughts = np.arange(config.vocab_size)
    rows = np.concatenate([np.tile(PROMPT, (len(thoughts), 1)), thoughts[:, None]], axis=1)

    def tables(own):
        log_p = jax.nn.log_softmax(nnx.merge(graph, own)(jnp.asarray(rows), rope_base=1e4))
        return log_p[thoughts, len(PROMPT) - 1, thoughts], log_p[:, -1, ANSWER[0]]

    def bound(own):
        thought, answer = tables(own)
        return -jnp.sum(jnp.exp(thought) * answer)

    exact = jax.jit(jax.grad(bound))(own)

    def slopes(own):
        """The derivative along g: attention has a backward pass only, which is linear in what it is given."""
        found, back = jax.vjp(tables, own)

        def product(given):
            return sum(map(jnp.vdot, jax.tree.leaves(back(given)[0]), jax.tree.leaves(exact)))

        return found, jax.grad(product)(jax.tree.map(jnp.zeros_like, found))

    values, slopes = jax.jit(slopes)(own)
    squared = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(exact))
    return objective, params, exact, squared, *(np.asarray(x, np.float64) for x in (*values, *slopes))


def estimates(groups, baseline=True):
    """The estimator along g, over |g|^2, of each group of samples, as an iteration makes it: 1 is exact."""
    _, _, _, squared, _, answer, d_thought, d_answer = listed()
    rewards = answer[groups]
    a = advantages.leave_one_out(rewards.ravel(), SAMPLES).reshape(groups.shape) if baseline else rewards
    score, direct = -(a * d_thought[groups]).mean(axis=1), -d_answer[groups].mean(axis=1)
    return score / squared, direct / squared


def drawn(count, seed=0):
    thought = listed()[4]
    probabilities = np.exp(thought) / np.exp(thought).sum()
    return np.random.default_rng(seed).choice(len(thought), (count, SAMPLES), p=probabilities)


def within(values):
    """Whether a mean is 1 within 4 of its standard errors."""
    return abs(values.mean() - 1) < 4 * values.std(ddof=1) / np.sqrt(len(values))


def test_the_gradient_of_elo_is_unbiased_with_both_terms_only():
    score, direct = estimates(drawn(400_000))
    assert within(score + direct)
    assert not within(1.1 * (score + direct)), "a planted bias of 10% is not seen"
    assert not within(score) and not within(direct)


def test_the_leave_one_out_baseline_lowers_the_variance():
    groups = drawn(20_000, seed=1)
    with_baseline, without = (sum(estimates(groups, baseline)) for baseline in (True, False))
    assert with_baseline.var() < without.var()


def test_the_objectives_gradient_is_that_estimator():
    objective, params, exact, squared, _, answer, *_ = listed()
    groups = drawn(3, seed=2)
    some = [sequences.Continuation(PROMPT, [int(c)], (), ANSWER) for c in groups.ravel()]
    rows = sequences.rows(some, 3, 32)
    scored = jax.jit(objective.score)(params, rows.columns, STAGE)
    rewards = np.array([log_p.sum() for log_p in rows.of(np.asarray(scored.log_p), answers=True)])
    np.testing.assert_allclose(rewards, answer[groups.ravel()], atol=1e-4)
    found = [np.full(1, a) for a in advantages.leave_one_out(rewards, SAMPLES)]
    batch = {
        **rows.columns, "advantages": rows.spread(found), "old_log_p": np.asarray(scored.log_p),
        **{name: np.zeros_like(rows.columns["weights"]) for name in ("returns", "old_values", "reference_log_p")},
    }  # fmt: skip
    gradient = jax.jit(jax.grad(lambda params: objective.terms(params, batch, STAGE).loss.value))(params)
    along = sum(
        float((own * other).sum())
        for own, other in zip(
            jax.tree.leaves({name: gradient[name] for name in exact}), jax.tree.leaves(exact), strict=True
        )
    )
    assert along / squared == pytest.approx(float(sum(estimates(groups)).mean()), rel=1e-3)
