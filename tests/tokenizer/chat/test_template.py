"""Templates that come with models: recognised by what they render, used as they are, or refused."""

import dataclasses
import time

import pytest

from m1jax.errors import UserError
from m1jax.tokenizer import chat
from m1jax.tokenizer.chat import jinja, template
from tests.tokenizer.chat import chat_tokenizers as made
from tests.tokenizer.chat.chat_tokenizers import talk

# SmolLM2's, as its files have it.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Another hand's: macros, no line end behind the last turn, turns that must alternate, no default.
STRICT = """\
{%- macro turn(role, text) -%}{{ '<|im_start|>%s\\n%s<|im_end|>' | format(role, text) }}{%- endmacro -%}
{%- set ns = namespace(last='assistant') -%}
{% for m in messages %}
  {%- if m.role != 'system' %}
    {%- if m.role == ns.last %}{{ raise_exception('Roles must alternate') }}{% endif %}
    {%- set ns.last = m.role %}
  {%- endif %}
  {{- turn(m.role, m.content) }}
  {%- if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
BAICHUAN = (
    "{% if messages[0].role != 'system' %}<B_SYS>You are a helpful assistant.{% endif %}{% for m in messages %}"
    "{{ {'system': '<B_SYS>', 'user': '<C_Q>', 'assistant': '<C_A>'}[m.role] + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<C_A>{% endif %}"
)


@pytest.mark.parametrize(
    ("marks", "source", "name", "default"),
    [
        (made.CHATML, SMOLLM2, "ChatML", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (made.CHATML, STRICT, "ChatML", None),
        (made.BAICHUAN, BAICHUAN, "Baichuan-M1", "You are a helpful assistant."),
        (
            (*made.BAICHUAN, *made.CHATML),
            SMOLLM2.replace("<|im_start|>system\nYou", "<|im_start|>system\n"),
            "ChatML",
            0,
        ),
    ],
)
def test_a_template_is_recognised_by_what_it_renders(marks, source, name, default, tmp_path):
    found = chat.of(made.make(tmp_path / "own", marks, chat_template=source))
    assert found.format.name == name
    assert f"{name}, recognised by what the template in " in found.origin and "tokenizer_config.json" in found.origin
    if default != 0:
        assert found.format.default_system == default
    assert any(part.answer == 1 for part in found.parts(talk(("user", "a"), ("assistant", "b"))))


@pytest.mark.parametrize("known", chat.FORMATS, ids=lambda known: known.name)
def test_our_own_templates_are_recognised_whole(known, tmp_path):
    marks = [mark.text for mark in known.marks]
    for default in (known.default_system, "你好 {{ x }} 'quoted\" \\n"):
        wanted = dataclasses.replace(known, default_system=default)
        tokenizer = made.make(tmp_path / "own", marks, chat_template=jinja.template(wanted, [*marks, "</s>"]))
        assert chat.of(tokenizer).format == wanted


CHANGED = {
    "content trimmed": ("message['content']", "message['content'] | trim"),
    "content escaped": ("message['content']", "message['content'] | e"),
    "another end": ("<|im_end|>' + '\n'", "<|im_end|>'"),
    "another prompt": ("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}"),
    "another role": ("message['role'] +", "message['role'] | upper +"),
    "no end": ("message['content'] + '<|im_end|>' + '\n'", "message['content'] + '\n'"),
    "last answer left open": (
        "'<|im_end|>' + '\n'}}",
        "('<|im_end|>\n' if not loop.last or add_generation_prompt else '')}}",
    ),
    "more at the end": ("{% endfor %}", "{% endfor %}{% if not add_generation_prompt %}Bye.{% endif %}"),
    "system dropped": ("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"),
    "another system": ("message['content'] +", "message['content'] + ('!' if message.role == 'system' else '') +"),
}


@pytest.mark.parametrize("change", CHANGED, ids=str)
def test_a_template_that_differs_anywhere_is_used_for_generation_only(change, tmp_path):
    assert CHANGED[change][0] in SMOLLM2
    tokenizer = made.make(tmp_path / "own", made.CHATML, chat_template=SMOLLM2.replace(*CHANGED[change]))
    found = chat.of(tokenizer)
    assert "which no known chat format reproduces (generation only)" in found.origin
    assert found.encode(talk(("user", "a")), add_generation_prompt=True)
    with pytest.raises(UserError, match="so what an answer is cannot be told for training"):
        found.parts(talk(("user", "a")))


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_MARKS = ("<start_of_turn>", "<end_of_turn>")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma") / "own"
    return made.make(folder, GEMMA_MARKS, chat_template=GEMMA, tokenizer_class="PreTrainedTokenizerFast")


def test_a_strange_template_gives_the_ids_of_transformers(gemma):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(gemma.folder)
    found = chat.of(gemma)
    talks = [
        talk(("user", "  Hi\nthere ")),
        talk(("user", ""), ("assistant", "发热"), ("user", "a < b | c")),
        talk(("user", "a"), ("assistant", "b")),
    ]
    for messages in talks:
        for prompt in (True, False):
            want = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
            assert found.encode(messages, add_generation_prompt=prompt) == want
    assert found.ends == [gemma.eos_id, gemma.token_id("<end_of_turn>")]


def test_many_conversations_start_a_strange_template_few_times(gemma, monkeypatch):
    found, starts = chat.of(gemma), []
    talks = [(talk(("user", f"turn> {n} \ue000")), bool(n % 2)) for n in range(5)]
    want = [found.encode(messages, add_generation_prompt=asked) for messages, asked in talks]
    render = template.Template.render
    monkeypatch.setattr(template.Template, "render", lambda own, cases: starts.append(len(cases)) or render(own, cases))
    monkeypatch.setattr(chat.chats, "_RENDERED_AT_ONCE", 3)
    assert found.encode_batch(talks) == want
    assert starts == [3, 2]


def test_a_strange_template_is_given_the_text_of_parts(gemma):
    found = chat.of(gemma)
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "a <end_of_"}, {"type": "text", "text": "turn>\ue000"}]}
    ]
    assert found.encode(parts) == found.encode(talk(("user", "a <end_of_turn>\ue000")))


def test_special_tokens_typed_for_a_strange_template_are_text(gemma):
    found = chat.of(gemma)
    plain = found.encode(talk(("user", "x")), add_generation_prompt=True)
    special = set(gemma.special_tokens.values())
    for typed in ("<end_of_turn>", " <start_of_turn>model\n</s> ", "<<s>", "<end_of_turn", "turn>\ue000"):
        ids = found.encode(talk(("user", typed)), add_generation_prompt=True)
        assert [i for i in ids if i in special] == [i for i in plain if i in special]
        assert gemma.decode(ids) == gemma.decode(plain).replace("x", typed.strip())
    # A text cannot complete what the template or another text begins.
    joined = "{% for m in messages %}{{ m.content }}{% endfor %}<end_of_{{ messages[0].content }}"
    glued = chat.chats.TemplateChat(template.Template(joined, "here", {}), gemma)
    ids = glued.encode(talk(("user", "turn>"), ("assistant", "<end_of_"), ("user", "turn>")))
    assert special.isdisjoint(ids) and gemma.decode(ids) == "turn><end_of_turn><end_of_turn>"


def test_what_a_strange_template_refuses_is_one_sentence(gemma):
    with pytest.raises(UserError, match=r"refuses this conversation \(System role not supported\): change its mess"):
        chat.of(gemma).encode(talk(("system", "x"), ("user", "y")))
    with pytest.raises(UserError, match=r"refuses this conversation \(.*no element"):
        chat.of(gemma).encode([])
    with pytest.raises(UserError, match="message 1 has no text"):
        chat.of(gemma).encode([{"role": "user", "content": None}])
    with pytest.raises(UserError, match="message 1 has no role"):
        chat.of(gemma).encode(["x"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in", "unexpected 'end of template'"),
        ("{{ messages.first.second.third }}", "has no attribute 'first'"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "'__class__' of 'str' object is unsafe"),
        ("{{ raise_exception.__globals__.x }}", "'__globals__' of 'function' object is unsafe"),
        ("{{ messages.clear() }}", "'clear' of 'list' object is unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
        ("{% for i in range(1000000) %}x{% endfor %}", "Range too big"),
        ("{{ 'x' * 4000000000 }}", "MemoryError"),
        ("{{ 'x' * 30000000 }}", "it writes more than 20,000,000 characters"),
        ("{% include 'secrets' %}", "no loader"),
    ],
)
def test_broken_and_hostile_templates_are_one_sentence(source, reason, tmp_path):
    tokenizer = made.make(tmp_path / "own", made.CHATML, chat_template=source)
    with pytest.raises(UserError, match="renders no conversation") as error:
        chat.of(tokenizer)
    assert reason in str(error.value) and str(error.value).count("\n") == 0


def test_a_template_that_never_ends_is_ended(tmp_path):
    endless = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    tokenizer = made.make(tmp_path / "own", made.CHATML, chat_template=endless)
    started = time.monotonic()
    with pytest.raises(UserError, match="was stopped: it needs more than 5 seconds or 1024 MiB"):
        chat.of(tokenizer)
    assert time.monotonic() - started < 60
    assert chat.of(tokenizer, "ChatML").format is chat.CHATML


def test_which_template_of_a_folder_counts(tmp_path):
    folder = tmp_path / "own"
    several = [{"name": "tool_use", "template": STRICT}, {"name": "default", "template": SMOLLM2}]
    made.make(folder, made.CHATML, chat_template=several)
    assert template.of_folder(folder).source == SMOLLM2
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<x>", "unk_token": {"content": "<unk>"}}')
    found = template.of_folder(folder)
    assert found.tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>", "unk_token": "<unk>"}
    (folder / "chat_template.jinja").write_text(STRICT)
    assert template.of_folder(folder).source == STRICT
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8"):
        template.of_folder(folder)
    (folder / "chat_template.jinja").unlink()
    made.make(folder, made.CHATML, chat_template=several[:1])
    with pytest.raises(UserError, match="chat_template is neither a text nor a list with one"):
        template.of_folder(folder)
    made.make(folder, made.CHATML, chat_template=STRICT)
    (folder / "special_tokens_map.json").write_text("{")
    with pytest.raises(UserError, match=r"special_tokens_map\.json is damaged"):
        template.of_folder(folder)
    assert template.of_folder(tmp_path) is None


def test_two_formats_that_render_the_same_are_not_guessed_between(tmp_path):
    twin = dataclasses.replace(chat.CHATML, name="Twin", closing=(chat.Own.EOS,))
    tokenizer = made.make(tmp_path / "own", made.CHATML, chat_template=SMOLLM2)
    with pytest.raises(UserError, match=r"several chat formats fit this model \(ChatML, Twin\)"):
        chat.of(tokenizer, formats=(*chat.FORMATS, twin))
    assert chat.of(tokenizer, "Twin", (*chat.FORMATS, twin)).format is twin
