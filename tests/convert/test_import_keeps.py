"""What an import and an export must not lose: tokenizer settings, chat templates, end tokens; and what makes it new."""

import json
import shutil

import pytest
import sentencepiece
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

import m1jax
from m1jax import loading
from m1jax.tokenizer import chat, train
from m1jax.verbs import main
from tests.convert import checkpoints
from tests.model import small

CONFIG = small.config(num_layers=1, vocab_size=440)
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
TALK = [{"role": "user", "content": "发热?"}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint without a tokenizer."""
    return checkpoints.write(tmp_path_factory.mktemp("plain") / "hf", CONFIG, checkpoints.tensors(CONFIG))


def of_words(folder):
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "padding_side": "right"}))


def ours(folder):
    train(iter(["The patient has a fever of 39 degrees.", "患者发热三天。"] * 9), 430).save(folder)


@pytest.fixture(params=[of_words, ours], ids=["another's", "ours"])
def source(request, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "hf")
    request.param(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77, "my_setting": [1]}))
    return folder


def there_and_back(source, tmp_path):
    assert main(["import", "--from", str(source), "--out", str(tmp_path / "ours")]) == 0
    assert main(["export", "--model", str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    return tmp_path / "back"


TEMPLATES = {
    "file": {"chat_template.jinja": TEMPLATE},
    "legacy": {"chat_template.json": json.dumps({"chat_template": TEMPLATE})},
    "others": {
        "chat_template.jinja": TEMPLATE,
        "additional_chat_templates/tool_use.jinja": "tools " + TEMPLATE,
        "additional_chat_templates/rag.jinja": "documents " + TEMPLATE,
    },
    "named": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools " + TEMPLATE}],
    "key": TEMPLATE,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_and_settings_come_along(name, source, tmp_path):
    files = TEMPLATES[name]
    if not isinstance(files, dict):
        settings = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": files}))
        files = {}
    (source / "additional_chat_templates").mkdir()
    for path, content in files.items():
        (source / path).write_text(content)
    back = there_and_back(source, tmp_path)
    for path, content in files.items():
        assert (back / path).read_text() == content
    wanted = json.loads((source / "tokenizer_config.json").read_text())
    found = json.loads((back / "tokenizer_config.json").read_text())
    assert found == found | wanted
    theirs = AutoTokenizer.from_pretrained(back)
    assert theirs.model_max_length == 77
    assert theirs.padding_side == wanted.get("padding_side", "left")
    assert theirs.apply_chat_template(TALK, tokenize=False) == "[user] 发热?"
    if name in ("others", "named"):
        tools = theirs.apply_chat_template(TALK, tokenize=False, chat_template=theirs.get_chat_template("tool_use"))
        assert tools == "tools [user] 发热?"
    for folder in (source, tmp_path / "ours" / "tokenizer", back):
        tokenizer = loading.tokenizer_in(folder, {"eos_token_id": 2})
        assert "the template in" in chat.of(tokenizer).origin


def test_a_template_that_is_edited_is_a_new_import_and_any_other_file_too(source, tmp_path, capsys):
    command = ["import", "--from", str(source), "--out", str(tmp_path / "ours")]

    def again():
        assert main(command) == 0
        return "already complete" not in capsys.readouterr().out

    assert again() and not again()
    for name in ("chat_template.jinja", "added_tokens.json", "tokenizer_x.model", "tokenization_own.py"):
        (source / name).write_text("{}")
        assert again() and not again(), name
    # As long as before, and within the clock's grain.
    (source / "chat_template.jinja").write_text("[]")
    assert again()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{}")
    assert again()
    assert (tmp_path / "ours" / "tokenizer" / "additional_chat_templates" / "rag.jinja").is_file()


def test_a_template_that_is_edited_is_a_new_export(source, tmp_path, capsys):
    """In an imported model's own folder, where people change how it talks."""
    back = there_and_back(source, tmp_path)
    command = ["export", "--model", str(tmp_path / "ours"), "--out", str(back)]
    assert main(command) == 0 and "already complete" in capsys.readouterr().out
    (tmp_path / "ours" / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    assert main(command) == 0 and (back / "chat_template.jinja").read_text() == TEMPLATE
    record = json.loads((tmp_path / "ours" / "model.json").read_text())
    (tmp_path / "ours" / "model.json").write_text(json.dumps({**record, "generation": {"eos_token_id": [7]}}))
    assert main(command) == 0
    assert json.loads((back / "generation_config.json").read_text()) == {"eos_token_id": [7]}


@pytest.mark.parametrize("kind", ["json", "model"])
def test_a_tokenizer_larger_than_the_model_is_refused(kind, plain, tmp_path, capsys):
    source = shutil.copytree(plain, tmp_path / "hf")
    if kind == "json":
        of_words(source)
        content = json.loads((source / "tokenizer.json").read_text())
        content["model"]["vocab"]["b"] = 440
        (source / "tokenizer.json").write_text(json.dumps(content))
    else:
        texts = [f"word{i} the fever {chr(0x4E00 + i)}" for i in range(410)]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(source / "tokenizer"), vocab_size=441, minloglevel=2
        )
    assert main(["import", "--from", str(source), "--out", str(tmp_path / "ours")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has ids up to 440, the model of config.json has vocab_size = 440" in said
    assert not (tmp_path / "ours").exists()


def test_rows_of_zeros_in_the_head_are_said(plain, tmp_path, capsys):
    source = shutil.copytree(plain, tmp_path / "hf")
    found = load_file(source / "model.safetensors")
    found["lm_head.weight"][-7:] = 0
    save_file(found, source / "model.safetensors")
    assert main(["import", "--from", str(source), "--out", str(tmp_path / "ours")]) == 0
    assert "7 rows of the head are zeros" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("generation", [None, {"eos_token_id": [7, 2]}, {"temperature": 0.5}])
def test_every_end_token_of_both_files_survives(generation, source, tmp_path):
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**content, "eos_token_id": [2, 3]}))
    if generation is not None:
        (source / "generation_config.json").write_text(json.dumps(generation))
    back = there_and_back(source, tmp_path)
    assert json.loads((back / "config.json").read_text())["eos_token_id"] == [2, 3]
    ends = {2, 3, *(generation or {}).get("eos_token_id", [])}
    for folder in (source, tmp_path / "ours", back):
        assert set(m1jax.load(folder)[0].eos_ids) == ends
    if generation is not None:
        assert json.loads((back / "generation_config.json").read_text()) == generation
