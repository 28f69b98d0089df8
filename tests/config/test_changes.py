"""What a config changes in a run that has begun."""

import json

import pytest

from m1jax.config import changes, to_dict
from m1jax.config import file as config_file
from m1jax.errors import UserError

SAVED = json.loads(json.dumps(to_dict(config_file.load("quickstart"))))


def compared(*overrides, saved=SAVED):
    return changes.compare(saved, config_file.load("quickstart", overrides))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.weight_decay=0.2", "optimizer.weight_decay was 0.1, is 0.2"),
        ("optimizer.b1=0.8", "optimizer.b1 was 0.9, is 0.8"),
        ("optimizer.b2=0.99", "optimizer.b2 was 0.95, is 0.99"),
        ("optimizer.eps=1e-7", "optimizer.eps was 1e-08, is 1e-07"),
        ("optimizer.no_decay=['norm']", "optimizer.no_decay was ['norm', 'conv'], is ['norm']"),
        ("optimizer.clip.max_norm=2.0", "optimizer.clip.max_norm was 1.0, is 2.0"),
        ("optimizer.clip.policy=global_norm", "optimizer.clip.policy was skip_spikes, is global_norm"),
        ("stages.0.rope_base=5e4", "stage 'general': rope_base was 10000.0, is 50000.0"),
        ("stages.0.skip_steps=False", "stage 'general': skip_steps was True, is False"),
        ("stages.2.learning_rate.end=1e-9", "stage 'annealing': learning_rate.end was"),
        ("train.average_decay=0.5", "train.average_decay was 0.0, is 0.5"),
    ],
)
def test_what_is_learned_is_named(override, said):
    (found,) = compared(override).learned
    assert found.startswith(said)


def test_what_only_rounds_otherwise_is_told_apart():
    found = compared("train.accumulation=2", "train.remat=block", "mesh.fsdp=2", "model.compute_dtype=float32")
    assert not found.learned and len(found.noted) == 4
    assert "train.remat was dots, is block" in found.noted
    assert compared("train.initial=elsewhere") == changes.Changes([], ["train.initial was empty, is elsewhere"])


def test_what_changes_no_number_is_nothing():
    found = compared("train.log_every=1", "train.checkpoint_every=7", "train.keep_checkpoints=9", "folder=elsewhere")
    assert found == changes.Changes([], [])


def test_what_another_version_did_not_know_is_passed_over():
    saved = json.loads(json.dumps(SAVED))
    del saved["optimizer"]["b2"]
    saved["optimizer"]["old"] = saved["stages"][0].pop("skip_steps")
    del saved["train"]
    assert compared("optimizer.b2=0.99", saved=saved) == changes.Changes([], [])


def test_without_amend_it_is_refused_with_every_change():
    config = config_file.load("quickstart", ["optimizer.b1=0.8", "stages.0.rope_base=5e4"])
    with pytest.raises(
        UserError, match=r"the checkpoint of step 7 .* optimizer\.b1 was 0\.9, is 0\.8; stage 'general': .* --amend"
    ):
        changes.check(SAVED, config, 7)
    assert len(changes.check(SAVED, config, 7, amend=True).learned) == 2
    with pytest.raises(UserError, match=r"restore them or start a new run in another folder\.$"):
        changes.check(SAVED, config, config.total_steps, amend=True)
