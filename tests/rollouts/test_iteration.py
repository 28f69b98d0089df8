"""An iteration's batch: every continuation has its own reward, read back from the rows that the step gets."""

import types

import jax
import numpy as np
import pytest

from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.objectives.policy import Policy
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from m1jax.rollouts.iteration import Collector
from m1jax.rollouts.prompts import Prompt
from m1jax.rollouts.rewards import of_rule
from m1jax.tokenizer.training import train
from tests.parallel import toy

TOKENIZER = train(iter(["is it yes or no"] * 20), 420)


def made(method, *changes, rule=lambda prompt, response, reference: len(response), devices=1):
    settings = [
        "objective=policy", "model.num_layers=2", "policy.max_new_tokens=8", "policy.prompts=4", "policy.samples=4",
        "policy.kl_weight=0", "train.checkpoint_every=1", *changes,
    ]  # fmt: skip
    config = config_file.load(toy.TINY, settings)
    stage = config.stages[0]
    config.policy.methods[stage.name] = method
    mesh = meshes.make(config.mesh, jax.devices()[:devices])
    objective = Policy(config, mesh)
    trainer = types.SimpleNamespace(config=config, objective=objective, mesh=mesh)
    prompts = [
        Prompt(f"p{i}", f"is it {i}", tuple(TOKENIZER.encode(f"is it {i}")), "yes", tuple(TOKENIZER.encode("yes")))
        for i in range(6)
    ]
    collector = Collector(trainer, TOKENIZER, [TOKENIZER.eos_id], prompts, {"exact": of_rule(rule)})
    shardings = rules.parameter_shardings(mesh, objective.shapes, objective.axes)
    return collector, jax.device_put(objective.initialise(), shardings), stage


def pieces(columns):
    """(row, places of the sampled targets, their tokens) of every continuation, from the rows alone."""
    for row, ids in enumerate(columns["segment_ids"]):
        for number in sorted(set(ids.tolist()) - {0}):
            at = np.flatnonzero((ids == number) & (columns["weights"][row] > 0))
            yield row, at, columns["targets"][row][at].tolist()


def test_every_continuation_has_the_advantage_of_its_own_text():
    collector, params, stage = made("leave_one_out")
    found = collector.collect(params, 0, stage)
    read = list(pieces(found.columns))
    assert len(read) == 16 and not found.columns["answers"].any()

    def text(row, at, tokens):
        before = found.columns["tokens"][row][: at[0] + 1]
        own = before[found.columns["segment_ids"][row][: at[0] + 1] == found.columns["segment_ids"][row][at[0]]]
        ended = tokens[-1] == TOKENIZER.eos_id
        return TOKENIZER.decode(tokens[:-1] if ended else tokens, before=own.tolist())

    rewards = np.array([len(text(*one)) for one in read], float).reshape(4, 4)
    assert len(set(rewards.ravel())) > 2
    wanted = rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / 3
    for (row, at, _), advantage in zip(read, wanted.ravel(), strict=True):
        np.testing.assert_allclose(found.columns["advantages"][row][at], advantage, atol=1e-4)
    assert found.values["reward"] == pytest.approx(rewards.mean()) and found.values["mismatch"] < 1e-3
    again = collector.collect(params, 0, stage)
    assert all((found.columns[name] == again.columns[name]).all() for name in found.columns)
    other = collector.collect(params, 1, stage)
    assert (found.columns["tokens"] != other.columns["tokens"]).any()


@pytest.mark.parametrize(
    ("terms", "score", "answer"), [("both", True, True), ("score", True, False), ("answer", False, True)]
)
def test_elo_has_the_terms_that_are_asked_for_and_needs_no_reward(terms, score, answer):
    collector, params, stage = made("elo", f"policy.elo_terms={terms}")
    collector._rewards = {}
    found = collector.collect(params, 0, stage)
    assert found.columns["advantages"].any() == score and found.columns["answers"].any() == answer


def test_a_sampler_that_drifts_from_the_trainer_stops_the_run():
    collector, params, stage = made("group", "policy.max_mismatch=0.0")
    with pytest.raises(UserError, match="sampler and trainer differ by"):
        collector.collect(params, 0, stage)


SHARED = "model.num_heads=4", "model.num_kv_heads=2", "model.window_num_heads=4", "model.window_num_kv_heads=4"


def test_a_trainer_and_a_sampler_that_divide_the_model_otherwise_make_the_same_iteration():
    alone, params, stage = made("ppo", *SHARED)
    want = alone.collect(params, 0, stage)
    apart, params, _ = made("ppo", *SHARED, "mesh.fsdp=4", "policy.sampler_tensor=2", devices=4)
    found = apart.collect(params, 0, stage)
    assert found.values["mismatch"] < 1e-3
    assert (found.columns["tokens"] == want.columns["tokens"]).all()
    np.testing.assert_allclose(found.columns["old_log_p"], want.columns["old_log_p"], atol=1e-4)
    sampler = apart._batcher._prepared
    assert dict(sampler.mesh.shape)["tensor"] == 2 and dict(sampler.mesh.shape)["data"] == 2
    assert not sampler.parameters, "between iterations the trainer has the memory of the sampler's copy"


def test_a_sampler_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(UserError, match="do not make 4 devices"):
        made("ppo", "mesh.fsdp=4", "policy.sampler_tensor=3", devices=4)


def test_rows_that_are_scored_in_parts_are_scored_alike():
    whole, params, stage = made("ppo")
    want = whole.collect(params, 0, stage).columns
    parts, params, _ = made("ppo", "train.accumulation=4")
    found = parts.collect(params, 0, stage).columns
    assert (found["tokens"] == want["tokens"]).all()
    np.testing.assert_allclose(found["old_log_p"], want["old_log_p"], atol=1e-5)
    assert np.unique(want["old_log_p"][want["weights"] > 0].round(3)).size > 8


def test_an_adapter_is_part_of_what_is_sampled_from():
    collector, params, stage = made("ppo", "train.lora.rank=2")
    first = collector.collect(params, 0, stage)
    moved = jax.tree.map(lambda leaf: leaf + 0.3 if leaf.shape[-1:] == (2,) or 2 in leaf.shape else leaf, params)
    second = collector.collect(moved, 0, stage)
    assert max(first.values["mismatch"], second.values["mismatch"]) < 1e-3
    assert (first.columns["tokens"] != second.columns["tokens"]).any()
