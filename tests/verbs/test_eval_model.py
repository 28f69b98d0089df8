"""`m1 eval --model`: questions for a small exported model, kept, compared and shown."""

import json
import shutil

import numpy as np
import pytest

from m1jax.evaluate import answers, forms
from m1jax.generate import likelihood
from m1jax.generate.engine import LanguageModel
from m1jax.loading import load
from m1jax.show.answers import shown
from m1jax.verbs import main
from tests.verbs.test_generation import export

WORDS = ["Asthma", "disease", "airways", "气道", "疾病"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same architecture with two sets of weights."""
    place = tmp_path_factory.mktemp("models")
    export(place / "tuned", max_positions=160)
    shutil.copytree(place / "tuned", place / "base")
    path = place / "base" / "model.safetensors"
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(0)
    save_file({name: rng.permutation(x) for name, x in load_file(path).items()}, path, {"format": "np"})
    return place


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "wards.jsonl"
    records = [
        {
            "id": f"q{n}",
            "kind": ["name", "place"][n % 2],
            "question": f"What is {WORDS[n % 5]} {n}?",
            "choices": [WORDS[(n + k) % 5] for k in range(3)],
            "answer": n % 3,
            "entity": f"e{n // 2}",
        }
        for n in range(24)
    ]
    broken = [{**records[0], "answer": 9}, {**records[0], "id": "long", "question": "气道 " * 300}]
    file.write_text("".join(json.dumps(record) + "\n" for record in [*records, *broken]))
    return file


@pytest.fixture
def verb(folders, questions, capsys):
    def run(*arguments, status=0):
        assert main(["eval", "--model", str(folders / "tuned"), *map(str, arguments)]) == status
        return capsys.readouterr()

    return run


def test_answers_are_kept_compared_and_shown(verb, folders, questions, tmp_path, monkeypatch):
    """The whole verb, in the chat form; then the same again, which asks no model."""
    command = ["--questions", questions, "--form", "chat", "--against", folders / "base", "--out", tmp_path / "out"]
    printed = verb(*command, "--samples", "2", "--json")
    data = json.loads(printed.out)["wards"]
    assert "set aside 1 for an answer outside of its choices" in printed.err
    assert "set aside 1 for being longer than the context of 160 tokens" in printed.err
    assert [fault["place"] for fault in data["set_aside"]] == ["wards.jsonl:25", "long"]
    assert (data["form"], data["chat"], list(data["kinds"])) == ("chat", "Baichuan-M1", ["name", "place", "all"])
    whole = data["kinds"]["all"]
    own, other = (
        answers.read(tmp_path / "out" / "wards-chat"),
        answers.read(tmp_path / "out" / "against" / "wards-chat"),
    )
    picked = [
        [int(np.argmax(scores)) == item.answer for item, scores in zip(r.items, r.scores, strict=True)]
        for r in (own, other)
    ]
    assert whole["own"]["correct"] == sum(picked[0])
    assert whole["against"]["correct"] == sum(picked[1])
    assert whole["difference"]["difference"] == pytest.approx(np.mean(picked[0]) - np.mean(picked[1]))
    assert own.scores != other.scores
    samples = json.loads(printed.out)["samples"]
    assert {sample["kind"] for sample in samples} == {"name", "place"}
    assert all(
        f"right: {sample['right']}" in printed.err and shown(sample["said"]) in printed.err for sample in samples
    )

    monkeypatch.setattr(likelihood, "end_likelihoods", None)
    again = json.loads(verb(*command, "--json").out)
    assert again["wards"] == data
    compared = verb(
        "--questions",
        questions,
        "--form",
        "chat",
        "--out",
        tmp_path / "out",
        "--against",
        tmp_path / "out" / "against" / "wards-chat",
    )
    assert "already complete" in compared.out and "difference" in compared.out


def test_the_plain_form_scores_what_the_model_itself_says(verb, folders, questions, tmp_path):
    verb("--questions", questions, "--limit", "4", "--out", tmp_path)
    result = answers.read(tmp_path / "wards-base")
    assert 3 <= len(result.items) <= 4
    model, tokenizer = load(folders / "tuned")
    item, scores = result.items[0], result.scores[0]
    (asked,) = forms.as_text([item], tokenizer)
    for end, score in zip(asked.ends, scores, strict=True):
        tokens = [*asked.prompt, *end]
        logits = np.asarray(model(tokens), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        places = range(len(asked.prompt), len(tokens))
        assert score == pytest.approx(sum(log_p[place - 1, tokens[place]] for place in places), abs=1e-3)


def test_an_interrupted_evaluation_leaves_no_result(verb, questions, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "end_likelihoods", interrupted)
        verb("--questions", questions, "--out", tmp_path, status=130)
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_one_sentence(verb, questions, tmp_path, capsys):
    cases = [
        ([], "there are no questions"),
        (["--questions", tmp_path / "none.jsonl"], "does not exist"),
        (["--tasks", "boolk"], "there is no question set 'boolk'"),
        (["--questions", questions, "--seqio"], "--seqio does not go with --model"),
        (["--questions", questions, "--samples", "-1"], "give 0 or more"),
        (["--questions", questions, "--config", "quickstart"], "either --config FILE for a run, or --model DIR"),
        (["--questions", questions, "--limit", "2", "--against", tmp_path, "--out", tmp_path / "o"], "neither a run's"),
    ]
    for arguments, said in cases:
        error = verb(*arguments, status=2).err
        assert said in error and error.count("\n") == 1
    for arguments, said in [(["--form", "chat"], "--form does not go with --config"), ([], "no finished corpus")]:
        assert main(["eval", "--config", "quickstart", "--set", f"folder={tmp_path}", *arguments]) == 2
        assert said in capsys.readouterr().err
