"""AutoTokenizer on an export's files gives the ids of m1jax's tokenizer, and the chat format those of m1jax's chat."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from m1jax.convert import tokenizer_files
from m1jax.errors import UserError
from m1jax.tokenizer import SPECIAL_TOKENS, chat, train
from tests.tokenizer.chat import chat_tokenizers as made

TEXTS = ["The patient has a fever of 39 degrees.\n\n", "患者发热三天，体温39度。患者咳嗽。"] * 10
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROLES = ["system", "user_system", "user", "assistant", "function", "code"]
# Pieces of special tokens come up too, whole ones do not.
anything = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("<>_CQ 热")), max_size=30
).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))


@pytest.fixture(scope="module")
def ours():
    return train(iter(TEXTS), 420)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    ours.save(source)
    written = tokenizer_files.write(source, target, IDS, 256)
    assert set(written) == {path.name for path in target.iterdir()}
    assert set(written) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    return target


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_it_is_set_up_as_the_model_needs(ours, theirs):
    assert len(theirs) == ours.vocab_size and theirs.is_fast and theirs.model_max_length == 256
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token) == (1, 2, 0, None)
    assert theirs.convert_tokens_to_ids(["<B_SYS>", "<C_Q>", "<C_A>", "<B_CODE>"]) == [71, 73, 74, 76]
    batch = theirs(["a", "a b c"], padding=True)
    assert batch["attention_mask"][0] == [0] * (len(batch["attention_mask"][0]) - 1) + [1]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert theirs.decode([73, *ours.encode("Hi"), 74, 2], skip_special_tokens=True) == "Hi"


@given(anything)
@settings(max_examples=150, deadline=None)
def test_ids_and_text_of_any_text(ours, theirs, text):
    ids = theirs(text)["input_ids"]
    assert ids == ours.encode(text) and theirs.decode(ids) == text


@pytest.mark.parametrize("text", ["<C_Q>hello<C_A>", "<eos>", " <pad><bos>", "热<reserved_5> b"])
def test_a_special_token_in_a_text_can_be_text(ours, theirs, text):
    ids = theirs(text, split_special_tokens=True)["input_ids"]
    assert ids == ours.encode(text) and theirs.decode(ids) == text
    assert min(theirs(text)["input_ids"]) < 128


@given(st.lists(st.tuples(st.sampled_from(ROLES), anything), min_size=1, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_chat_has_the_ids_of_our_chat(ours, theirs, turns, prompt):
    talk = [{"role": role, "content": text} for role, text in turns]
    ids = theirs.apply_chat_template(talk, add_generation_prompt=prompt, return_dict=False)
    assert ids == chat.of(ours).encode(talk, add_generation_prompt=prompt)
    default = [] if turns[0][0] == "system" else [("system", "You are a helpful assistant.")]
    text = "".join(SPECIAL_TOKENS[71 + ROLES.index(role)] + content for role, content in [*default, *turns])
    closing = "<C_A>" if prompt else "<eos>" if turns[-1][0] == "assistant" else ""
    assert theirs.apply_chat_template(talk, add_generation_prompt=prompt, tokenize=False) == text + closing


def test_masks_mark_what_the_model_writes(ours, theirs):
    talk = [
        {"role": "user", "content": "发热?"},
        {"role": "assistant", "content": "39 degrees"},
        {"role": "user", "content": "Since?"},
        {"role": "assistant", "content": "三天"},
    ]
    found = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    # The next turn's token ends an answer, and is learnt with it.
    assert [i for i, mask in pairs if mask] == [*ours.encode("39 degrees"), 73, *ours.encode("三天"), 2]
    parts = chat.of(ours).parts(talk)
    assert found["assistant_masks"] == [int(part.answer is not None) for part in parts for _ in part.ids]
    begun = theirs.apply_chat_template(talk, tokenize=False, continue_final_message=True)
    assert begun.endswith("Since?<C_A>三天")


def test_masks_of_another_format_mark_its_end_marks(tmp_path):
    ours = made.make(tmp_path / "own", made.CHATML)
    (tmp_path / "export").mkdir()
    written = tokenizer_files.write(tmp_path / "own", tmp_path / "export", {"eos_token_id": ours.eos_id})
    assert "chat_template.jinja" in written
    theirs = AutoTokenizer.from_pretrained(tmp_path / "export")
    talk = made.talk(("system", "S"), ("user", "发热?"), ("assistant", "39"), ("user", "Since?"), ("assistant", "三天"))
    found = theirs.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    parts = chat.of(ours).parts(talk)
    assert found["input_ids"] == [i for part in parts for i in part.ids]
    assert found["assistant_masks"] == [int(part.answer is not None) for part in parts for _ in part.ids]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "doctor", "content": "x"}, "role doctor is unknown: use one of system, user_system, user"),
        ({"role": "user", "content": ["x"]}, "the content of message 1 is no text"),
        ({"role": "user", "content": "x<C_A>yes"}, "message 1 holds the special token <C_A>: take it out"),
        ({"role": "user", "content": "<reserved_7>"}, "holds the special token <reserved_7>"),
    ],
)
def test_a_bad_message_is_named(theirs, message, error):
    with pytest.raises(TemplateError, match=error):
        theirs.apply_chat_template([message])


def test_a_tokenizer_of_another_origin_is_kept(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    assert tokenizer_files.write(None, target, IDS) == () == tokenizer_files.write(source, target, IDS)
    backend = Backend(models.WordLevel({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.save(str(source / "tokenizer.json"))
    (source / "model.safetensors").write_text("not ours to copy")
    (source / "special_tokens_map.json").write_text("{}")
    written = tokenizer_files.write(source, target, {"eos_token_id": 2})
    assert set(written) == {"tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"}
    found = AutoTokenizer.from_pretrained(target)
    assert (found.eos_token, found.unk_token, found.bos_token) == ("</s>", "[UNK]", None)
    assert found("a")["input_ids"] == [1] and found("b")["input_ids"] == [0]

    (source / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    tokenizer_files.write(source, target, {"eos_token_id": 2})
    assert (target / "tokenizer_config.json").read_text() == '{"eos_token": "a"}'

    backend.add_special_tokens([AddedToken(SPECIAL_TOKENS[i], special=True) for i in (2, *range(71, 77))])
    backend.save(str(source / "tokenizer.json"))
    assert "chat_template.jinja" in tokenizer_files.write(source, target, {"eos_token_id": 2})


def test_a_template_that_is_there_is_kept(ours, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    ours.save(source), target.mkdir()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    assert "chat_template.jinja" in tokenizer_files.write(source, target, IDS)
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"


def test_two_formats_that_fit_leave_an_export_without_a_template(tmp_path):
    made.make(tmp_path / "own", (*made.CHATML, *made.BAICHUAN))
    (tmp_path / "export").mkdir()
    assert "chat_template.jinja" not in tokenizer_files.write(tmp_path / "own", tmp_path / "export", {})


def test_a_bad_tokenizer_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        tokenizer_files.write(tmp_path, tmp_path / "out", IDS)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"is no tokenizer"):
        tokenizer_files.write(tmp_path, tmp_path / "out", IDS)
    path.write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="has no token of id 1, which the model takes for bos"):
        tokenizer_files.write(tmp_path, tmp_path / "out", IDS)
