"""`m1 prefer`: from a folder of preferences and a model to a model that answers as was preferred."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from m1jax import loading
from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.rollouts import reward_model
from m1jax.rollouts.rewards import Case
from m1jax.show import preferences as preferences_plot
from m1jax.train.hooks.journal import read_journal
from m1jax.verbs import main
from tests.verbs.test_bad_input import refused

CONFIG = str(pathlib.Path(__file__).with_name("tiny_prefer.py"))


def command(folder, *more, **settings):
    keys = [f"folder={folder}", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]
    return ["prefer", "--config", CONFIG, *(part for key in keys for part in ("--set", key)), *more]


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """Yes is preferred to no, whatever is asked; three records cannot be used."""
    folder = tmp_path_factory.mktemp("preferences") / "prefs"
    folder.mkdir()
    records = [{"prompt": f"Is it {i}?", "chosen": f"yes {i}", "rejected": f"no, {i} it is not"} for i in range(60)]
    records += [
        {"prompt": "?", "chosen": "same", "rejected": "same"},
        {"prompt": "?", "chosen": "alone"},
        {"prompt": "?", "chosen": "short", "rejected": "heart " * 200},
    ]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture(scope="module")
def tuned(road, preferences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefer") / "run"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("rich.console.Console.print", lambda self, *parts, **_: said.extend(map(str, parts)))
        assert main(command(folder, "--preferences", str(preferences), train__initial=road)) == 0
    return folder, "\n".join(said)


def test_it_learns_what_was_preferred_on_pairs_that_it_never_saw(tuned):
    folder, said = tuned
    lines = read_journal(folder / "train" / "metrics.jsonl")
    assert abs(lines[0]["loss"] - np.log(2)) < 1e-5 and lines[-1]["loss"] < lines[0]["loss"]
    assert abs(lines[0]["kl_chosen"]) < 1e-5 < lines[-1]["kl_chosen"]
    assert lines[-1]["reward_chosen"] > lines[-1]["reward_rejected"]
    measured = {line["step"]: line for line in lines if "heldout_loss" in line}
    assert list(measured) == [3, 6] and measured[6]["heldout_accuracy"] > 0.9
    assert f"step 6 validated: held-out loss {measured[6]['heldout_loss']:.3f}, accuracy" in said
    reasons = pq.read_table(folder / "corpus" / "rejected.parquet")["reason"].to_pylist()
    assert sorted(reason.partition(" (")[0] for reason in reasons) == [
        "a side of a pair is longer than a row of 128 tokens",
        "chosen and rejected are equal",
        "no rejected answer",
    ]
    assert "<C_A>}yes " in said


def test_the_model_alone_is_what_is_used_and_exported(tuned, road, tmp_path):
    folder, _ = tuned
    own, before = loading.from_run(folder).params, loading.from_run(road).params
    assert jax.tree.structure(own) == jax.tree.structure(before)
    pairs = zip(*map(jax.tree.leaves, (own, before)), strict=True)
    assert all(bool((new != old).any()) for new, old in pairs)
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "out"), "--verify"]) == 0
    prompts = [[5, 6, 7], [8, 9]]
    said = [model.generate(prompts, 6) for model, _ in map(loading.load, (folder, tmp_path / "out"))]
    assert said[0] == said[1]


def test_the_reference_in_a_checkpoint_is_the_model_that_the_run_began_with(tuned, road, tmp_path, capsys):
    """Killed and continued, without that model and without the preferences, the losses are the same."""
    before = [line["loss"] for line in read_journal(tuned[0] / "train" / "metrics.jsonl")]
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "6")
    assert main(command(folder, train__initial="gone")) == 0
    assert "Continuing after step 4 of 6" in " ".join(capsys.readouterr().out.split())
    assert [line["loss"] for line in read_journal(folder / "train" / "metrics.jsonl")] == before


def test_an_adapter_learns_without_a_second_model(tuned, road, tmp_path, capsys):
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    for name in ("checkpoints", "train"):
        shutil.rmtree(folder / name)
    assert main(command(folder, train__initial=road, train__lora__rank=4)) == 0
    lines = read_journal(folder / "train" / "metrics.jsonl")
    assert abs(lines[0]["loss"] - np.log(2)) < 1e-5 and lines[-1]["loss"] < lines[0]["loss"]
    names = [path.name for path in (folder / "checkpoints" / "6" / "state").rglob("*reference*")]
    assert not names
    loading.load(folder)


@pytest.fixture(scope="module")
def judge(tuned, road, tmp_path_factory):
    """A reward model of the same pairs."""
    folder = shutil.copytree(tuned[0], tmp_path_factory.mktemp("judge") / "run")
    for name in ("checkpoints", "train"):
        shutil.rmtree(folder / name)
    assert main(command(folder, "--objective", "reward", train__initial=road)) == 0
    return folder


@pytest.mark.parametrize("devices", [1, 4])
def test_a_reward_model_tells_chosen_from_rejected(judge, devices):
    lines = read_journal(judge / "train" / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(np.log(2)) and lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["heldout_accuracy"] > 0.9
    tokenizer = loading.load(judge)[1]
    score = reward_model.opened(judge, tokenizer, meshes.make(MeshConfig(), jax.devices()[:devices]))
    asked = tokenizer.encode("Is it 3?")
    said = [Case("", "", "", asked, tokenizer.encode(text)) for text in ("yes 3", "no, 3 it is not")]
    found = score(said)
    assert len(found) == 2 and np.isfinite(found).all()
    assert score(said[::-1]) == pytest.approx(found[::-1], abs=1e-5)
    # A text that has its EOS already is read as it is.
    ended = [case._replace(response_ids=[*case.response_ids, tokenizer.eos_id]) for case in said]
    assert score(ended) == pytest.approx(found, abs=1e-5)


def test_a_run_is_drawn_with_the_calibration_of_its_held_out_pairs(judge, tuned, tmp_path, capsys):
    for folder, more in ((judge, ["--objective", "reward"]), (tuned[0], [])):
        assert main(command(folder, *more, "--plot", str(tmp_path / f"{folder.name}.png"))) == 0
        assert (tmp_path / f"{folder.name}.png").stat().st_size > 10_000
        last = [line for line in read_journal(folder / "train" / "metrics.jsonl") if "heldout_accuracy" in line][-1]
        said = capsys.readouterr().out
        assert f"accuracy {last['heldout_accuracy']:.3f} on held-out pairs" in said
        if more:
            found = preferences_plot.bins(last)
            assert sum(share for share, _, _ in found) == pytest.approx(1)
            assert sum(share * correct for share, _, correct in found) == pytest.approx(last["heldout_accuracy"])
            assert f"calibration error {preferences_plot.error(found):.3f}" in said
    assert main(command(tmp_path / "nothing", "--plot", str(tmp_path / "no.png"))) == 2
    assert "holds no measurement of held-out pairs" in capsys.readouterr().err


def test_eval_measures_a_run_on_pairs_by_its_objective(judge, tuned, capsys):
    def evaluated(folder, *more):
        return main(["eval", "--config", CONFIG, "--set", f"folder={folder}", "--json", *more])

    for folder, more in ((tuned[0], []), (judge, ["--set", "objective=reward"])):
        assert evaluated(folder, *more) == 0
        data = json.loads(capsys.readouterr().out.splitlines()[-1])
        last = read_journal(folder / "train" / "metrics.jsonl")[-1]
        assert data["step"] == 6 and data["pairs"] > 0
        for name, value in data["heldout"].items():
            assert value == pytest.approx(last[name], abs=1e-5), name
        (kept,) = (folder / "eval").rglob("results.json")
        assert json.loads(kept.read_text()) == data
    assert evaluated(judge) == 2
    assert "trained with the objective 'reward'" in capsys.readouterr().err
    assert evaluated(tuned[0], "--step", "0") == 2
    assert "to which every pair is even" in capsys.readouterr().err


def test_a_model_of_another_objective_gives_no_reward(tuned, judge):
    tokenizer = loading.load(judge)[1]
    with pytest.raises(UserError, match="objective 'preference', so it gives no reward"):
        reward_model.opened(tuned[0], tokenizer, meshes.make(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize(
    ("settings", "more", "words"),
    [
        ({"train__initial": ""}, (), ("train.initial is empty",)),
        ({}, (), ("has no preferences", "--preferences DIR")),
        ({"objective": "next_token"}, (), ("objective = 'next_token'", "m1 sft")),
        ({"preference__beta": 0}, (), ("preference.beta must be above 0",)),
        ({"preference__loss": "ppo"}, (), ("preference.loss", "tdpo2")),
    ],
)
def test_what_cannot_be_learned_is_refused(road, tmp_path, capsys, settings, more, words):
    given = command(tmp_path / "run", *more, **{"train__initial": road, **settings})
    refused(capsys, given, *words)


def test_conversations_are_no_preferences(tuned, road, tmp_path, capsys):
    talks = tmp_path / "talks"
    talks.mkdir()
    (talks / "a.jsonl").write_text(json.dumps({"prompt": "a?", "completion": "b"}))
    given = command(tmp_path / "run", "--preferences", str(talks), train__initial=road)
    refused(capsys, given, "every document was set aside", "no chosen answer")
