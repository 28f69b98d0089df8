"""`m1 sft`: from a folder of conversations and a model to a model that was trained on the answers."""

import json
import pathlib
import shutil

import pyarrow.parquet as pq
import pytest

from m1jax import artefact, loading
from m1jax import tokenizer as tokenizers
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.rows.manifest import Manifest
from m1jax.show import console as consoles
from m1jax.text.documents import read_documents
from m1jax.tokenizer import chat
from m1jax.tokenizer.chat import template
from m1jax.tokenizer.chat.chats import TemplateChat
from m1jax.train.hooks.journal import read_journal
from m1jax.verbs import main, tuning
from tests.tokenizer.chat import chat_tokenizers as made
from tests.verbs.test_bad_input import refused

CONFIG = str(pathlib.Path(__file__).with_name("tiny_sft.py"))


def command(folder, *more, **settings):
    keys = [f"folder={folder}", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())]
    return ["sft", "--config", CONFIG, *(part for key in keys for part in ("--set", key)), *more]


def write(folder):
    """Eighty conversations of two shapes, one that is too long, and some that cannot be used."""
    folder.mkdir()
    talks = []
    for i in range(40):
        asked = {"role": "user", "content": f"What is {i}?"}
        talks.append({"messages": [asked, {"role": "assistant", "content": f"It is {i}."}] * (1 + i % 2)})
        talks.append({"instruction": f"Say {i}.", "output": f"{i}!"})
    long = [{"role": "user", "content": "Again?"}, {"role": "assistant", "content": "heart " * 9}] * 6
    talks += [{"messages": long}, {"messages": []}, {"instruction": "?", "output": " "}, {"quest": "?"}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, talks)))
    return folder


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    return write(tmp_path_factory.mktemp("talks") / "talks")


@pytest.fixture(scope="module")
def tuned(road, conversations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "run"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("rich.console.Console.print", lambda self, *parts, **_: said.extend(map(str, parts)))
        assert main(command(folder, "--conversations", str(conversations), train__initial=road)) == 0
    return folder, "\n".join(said)


def test_what_is_learned_is_shown_before_the_run_and_what_is_not_used_is_counted(tuned):
    folder, said = tuned
    assert "Chat format: Baichuan-M1" in said
    for reason in ("no answer", "an empty answer", "cut at a turn to fit a row of 128 tokens"):
        assert f"set aside: 1 for {reason}" in said or f"1 for the end of a conversation, {reason}" in said
    assert "{<B_SYS>You are a helpful assistant.<C_Q>" in said and "<C_A>}" in said and "<eos>" in said
    reasons = pq.read_table(folder / "corpus" / "rejected.parquet")["reason"].to_pylist()
    assert len(reasons) == 4
    source = Manifest.load(folder / "rows").sources["talks"]
    held_out = pq.read_table(folder / "corpus" / "heldout" / "talks.parquet").num_rows
    assert source.documents + held_out == 81 and held_out > 2
    assert 0 < source.trained_tokens < source.tokens / 2


def test_the_model_learns_answers_and_chats_as_before(tuned, road):
    folder, said = tuned
    lines = read_journal(folder / "train" / "metrics.jsonl")
    losses = [line["loss"] for line in lines]
    assert len(losses) == 6 and losses[-1] < losses[0]
    measured = {line["step"]: line for line in lines if "heldout_loss" in line}
    assert list(measured) == [3, 6]
    assert measured[6]["heldout_loss"] == measured[6]["heldout_loss/talks"] < measured[3]["heldout_loss"]
    assert "step 3 validated: held-out loss" in said and "step 6 validated: held-out loss" in said
    _, tokenizer = loading.load(folder)
    assert tokenizer.fingerprint == loading.load(road)[1].fingerprint
    assert chat.of(tokenizer).origin.startswith("Baichuan-M1")


def test_the_same_command_continues_with_the_same_losses(tuned, road, tmp_path, capsys):
    """Without the model that it began with, and without the folder of conversations."""
    before = [line["loss"] for line in read_journal(tuned[0] / "train" / "metrics.jsonl")]
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "6")
    assert main(command(folder, train__initial="gone")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Continuing after step 4 of 6" in out
    assert [line["loss"] for line in read_journal(folder / "train" / "metrics.jsonl")] == before


def test_an_evaluation_measures_what_validation_did(tuned, road, capsys):
    """The conversations that were held out, on their answers; such a corpus has no questions to ask."""
    folder, _ = tuned
    settings = command(folder, train__initial=road)[1:]
    assert main(["eval", *settings]) == 0
    assert "No questions are asked" in capsys.readouterr().out
    found = json.loads((folder / "eval" / "step-6" / "results.json").read_text())
    (entry,) = found["loss"]["model"]["sources"].values()
    held_out = read_documents(folder / "corpus" / "heldout")
    line = read_journal(folder / "train" / "metrics.jsonl")[-1]
    assert entry["loss"] == pytest.approx(line["heldout_loss/talks"], rel=1e-5)
    assert entry["conversations"] == len(list(held_out))
    bits = found["bits_per_byte"]["model"]["sources"]["talks"]
    assert bits["bits_per_byte"] == pytest.approx(line["heldout_bits_per_byte/talks"], rel=1e-5)
    assert "accuracy" not in found and found["loss"]["unigram"]["sources"]["talks"]["loss"] > 0


def test_other_answers_are_other_rows_and_a_run_that_read_the_old_ones_is_refused(
    tuned, road, conversations, tmp_path, capsys
):
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    more = ["--conversations", str(conversations)]
    refused(capsys, command(folder, *more, train__initial=road, data__answers="last"), "talks")


def test_a_chat_format_that_changed_under_the_rows_is_refused(tuned, road, tmp_path, capsys):
    """The model would be used with other ids around a message than it was trained with."""
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    (folder / "tokenizer" / template.FILE).write_text("{{ messages[0].content }}")
    refused(
        capsys,
        command(folder, train__initial=road),
        "are written in Baichuan-M1 ",
        "which no known chat format reproduces",
        "restore its files and data.chat_format",
    )
    with pytest.raises(UserError, match=r"learned conversations in Baichuan-M1 \w+, but its tokenizer in .* writes"):
        loading.load(folder)


def test_conversations_of_another_tokenizer_are_not_packed(tuned, road, tmp_path, capsys):
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    stamp = folder / "corpus" / artefact.STAMP
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "tokenizer": "other"}))
    refused(capsys, command(folder, train__initial=road), "were written with tokenizer other, but the run's is")


def test_bad_input_is_one_sentence_and_leaves_nothing_half_written(road, conversations, tmp_path, capsys):
    more = ["--conversations", str(conversations)]
    folder = tmp_path / "run"
    refused(capsys, command(folder, *more), "train.initial is empty")
    refused(capsys, command(folder, *more, train__initial=tmp_path / "none"), str(tmp_path / "none"))
    refused(
        capsys,
        command(folder, *more, train__initial=road, data__heldout_share=0),
        "train.validate_every = 3 measures held-out conversations, but data.heldout_share is 0",
    )
    refused(capsys, command(folder, train__initial=road), "--conversations DIR")
    refused(capsys, command(folder, *more, train__initial=road, data__chat_format="ChatLM"), "'ChatLM' is unknown")
    refused(capsys, command(folder, *more, train__initial=road, data__chat_format="ChatML"), "<|im_start|>")
    (tmp_path / "bad").mkdir()
    empty = ["--conversations", str(tmp_path / "bad")]
    refused(capsys, command(folder, *empty, train__initial=road), "no .jsonl or .parquet")
    (tmp_path / "bad" / "a.jsonl").write_text('{"mesages": []}\n')
    refused(
        capsys, command(folder, *empty, train__initial=road), "every document was set aside", "'messages' for 'mesages'"
    )
    assert artefact.stamp(folder / "corpus") is None and not (folder / "rows").exists()


def test_the_copied_tokenizer_has_the_template_of_the_format_that_the_config_names(tmp_path):
    """Beside a template of the model's own that no format reproduces."""
    marks = (*made.BAICHUAN, *made.CHATML)
    model = made.make(tmp_path / "model", marks, chat_template="{{ messages[0].content }}").folder
    names = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<s>"}
    tokenizer = tokenizers.load(model)
    ids = {name: tokenizer.token_id(token) for name, token in names.items()}
    (model / "config.json").write_text(json.dumps(ids))
    assert isinstance(chat.of(tokenizer), TemplateChat)
    settings = [f"folder={tmp_path / 'run'}", f"train.initial={model}"]
    for name in ("ChatML", "baichuan-m1"):
        tuning.copy_tokenizer(config_file.load(CONFIG, [*settings, f"data.chat_format={name}"]), consoles.make())
        found = chat.of(tokenizers.load(tmp_path / "run" / "tokenizer"))
        assert found.format.name.lower() == name.lower()
