"""`m1 rl`: from conversations and a model to one that is better by rewards."""

import json
import pathlib
import shutil

import pytest

from m1jax import loading
from m1jax.train.hooks.journal import TIMING, read_journal
from m1jax.train.run import records
from m1jax.verbs import main
from tests.verbs.test_bad_input import refused

CONFIG = str(pathlib.Path(__file__).with_name("tiny_rl.py"))
CLOCKS = (*TIMING, "rollout_seconds", "rollout_tokens_per_second")


def command(folder, *more, **settings):
    keys = [f"folder={folder}", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]
    return ["rl", "--config", CONFIG, *(part for key in keys for part in ("--set", key)), *more]


def metrics(folder):
    lines = read_journal(folder / "train" / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl") / "talks"
    folder.mkdir()
    records_ = [{"prompt": f"Is it {i}?", "completion": "yes"} for i in range(80)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records_)))
    return folder


@pytest.fixture(scope="module")
def tuned(road, conversations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl") / "run"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("rich.console.Console.print", lambda self, *parts, **_: said.extend(map(str, parts)))
        assert main(command(folder, "--conversations", str(conversations), train__initial=road)) == 0
    return folder, "\n".join(said)


def test_each_step_says_what_it_came_to(tuned):
    folder, said = tuned
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert [line["stage"] for line in lines] == ["elo"] * 8 + ["ppo"] * 8
    first = [line for line in lines if "reward" in line]
    assert [line["step"] for line in first] == [1, 3, 5, 7, 9, 11, 13, 15]
    for line in first:
        assert line["ratio_deviation"] < 1e-4 and line["clip_share"] == 0
        assert line["mismatch"] < 1e-4 and 1 <= line["length"] <= 8
        assert 0 <= line["reward/exact"] <= 1 and 0 <= line["reward/form"] <= 1
    assert first[0]["rollout_kl"] == pytest.approx(0, abs=1e-5) and first[-1]["rollout_kl"] > 0
    # ELO learns the answer behind a thought: its reward is log π(answer), which rises.
    assert first[3]["reward"] > first[0]["reward"] + 0.5
    assert any(line["ratio_deviation"] > 1e-3 for line in lines if line["step"] % 2 == 0)
    assert "iteration 5 of 8 (ppo, ppo): reward" in said


def test_held_out_prompts_are_answered_and_kept(tuned):
    folder, _ = tuned
    lines = records.read(folder / "train" / "samples.jsonl")
    assert [(line["step"], line["stage"]) for line in lines] == [
        *((step, "elo") for step in (0, 4, 8)), *((step, "ppo") for step in (8, 12, 16))
    ]  # fmt: skip
    assert lines[2]["heldout_gain"] == pytest.approx(lines[2]["heldout_reward"] - lines[0]["heldout_reward"], abs=1e-6)
    assert lines[2]["heldout_gain"] > 2 * lines[2]["heldout_gain_error"] and "heldout_gain" not in lines[3]
    for line in lines:
        assert len(line["samples"]) == 2 and line["samples"][0]["reference"] == "yes"
    measured = {line["step"]: line["heldout_reward"] for line in metrics(folder) if "heldout_reward" in line}
    assert measured == {line["step"]: line["heldout_reward"] for line in (*lines[1:3], *lines[4:])}


def test_a_run_is_drawn(tuned, tmp_path, capsys):
    assert main(command(tuned[0], "--plot", str(tmp_path / "rl.png"))) == 0
    assert (tmp_path / "rl.png").read_bytes().startswith(b"\x89PNG")
    refused(capsys, command(tmp_path / "none", "--plot", str(tmp_path / "rl.png")), "holds no iterations")


def test_a_run_goes_on_exactly_without_its_first_model(tuned, tmp_path, capsys):
    whole, samples = metrics(tuned[0]), records.read(tuned[0] / "train" / "samples.jsonl")
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "16")
    assert main(command(folder, train__initial="gone")) == 0
    assert "Continuing after step 12 of 16" in " ".join(capsys.readouterr().out.split())
    again = metrics(folder)
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]
    assert again == whole and records.read(folder / "train" / "samples.jsonl") == samples


def test_a_run_that_drifts_from_its_reference_saves_and_stops(tuned, tmp_path, capsys):
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "16")
    bound = metrics(folder)[12]["rollout_kl"] * 0.9
    given = command(folder, "--amend", train__initial="gone", policy__max_kl=bound)
    refused(capsys, given, f"more than policy.max_kl = {bound}: saved after step 14", "with a larger bound and --amend")
    assert (folder / "checkpoints" / "14").is_dir()


def test_the_model_alone_is_what_is_used(tuned, road):
    own, before = loading.from_run(tuned[0]).params, loading.from_run(road).params
    assert {*own} == {*before}
    loading.load(tuned[0])


def test_other_prompts_and_settings_are_refused_under_a_run(tuned, road, conversations, tmp_path, capsys):
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "16")
    refused(capsys, command(folder, train__initial=road, policy__clip=0.1), "policy.clip was 0.2, is 0.1")
    more = '{"exact": 1.0, "form": 0.1, "length": 0.5}'
    refused(capsys, command(folder, train__initial=road, policy__rewards=more), "policy.rewards was", "'length': 0.5")
    other = shutil.copytree(conversations, tmp_path / "talks")
    with open(other / "a.jsonl", "a") as file:
        file.write('\n{"prompt": "One more?", "completion": "yes"}')
    refused(capsys, command(folder, "--conversations", str(other), train__initial=road), "trained on other prompts")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "next_token"}, ("objective = 'next_token'", "m1 sft")),
        ({"train__initial": ""}, ("train.initial is empty",)),
        ({}, ("has no conversations", "--conversations DIR")),
        ({"policy__samples": 1}, ("groups of one",)),
        ({"policy__temperature": 0}, ("policy.temperature must be above 0",)),
        ({"policy__prompts": 3}, ("do not spread evenly",)),
        ({"policy__max_new_tokens": 100}, ("policy.max_new_tokens", "lengthen the rows")),
        ({"train__checkpoint_every": 3}, ("train.checkpoint_every = 3", "between iterations")),
        ({"train__emergency_every": 3}, ("train.emergency_every = 3", "between iterations")),
        ({"policy__rewards": '{"exact": 0.0}'}, ("policy.rewards has no weight", "stage 'ppo'")),
        ({"policy__gamma": 1.5}, ("policy.gamma must be at most 1",)),
        ({"stages__0__tokens": 3 * 1024}, ("whole iterations",)),
        ({"policy__methods__elo": "grpo"}, ("policy.methods.elo must be one of",)),
        ({"policy__kl": "k1_loss"}, ("policy.kl", "k3_loss")),
    ],
)
def test_what_cannot_be_learned_is_refused(road, tmp_path, capsys, settings, words):
    refused(capsys, command(tmp_path / "run", **{"train__initial": road, **settings}), *words)


def test_rows_of_text_are_no_answers(road, tmp_path, capsys):
    given = command(tmp_path / "run", train__initial=road)
    refused(capsys, ["train", *given[1:]], "run `m1 rl`")
