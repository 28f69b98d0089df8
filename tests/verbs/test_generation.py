"""`m1 generate` and `m1 chat` on a small exported model with a tokenizer of its own."""

import io
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys

import pytest

import m1jax
from m1jax import model
from m1jax.convert import hf
from m1jax.generate import Sampling
from m1jax.generate.text import answers
from m1jax.show.answers import read_all, shown
from m1jax.tokenizer import chat, train
from m1jax.verbs import main
from m1jax.verbs.chat import HELP, _lines
from tests.model import small
from tests.verbs.conftest import PROGRAM

TEXT = "Asthma is a disease of the airways. 哮喘是气道的疾病。 "
POSITIONS = 160
GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "generation.md"


def export(folder, **changes):
    tokenizer = train(iter([TEXT * 5] * 4), 420)
    config = small.config(vocab_size=tokenizer.vocab_size, num_layers=2, **changes)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    folder.mkdir()
    hf.export(model.create(config, 0)[1], config, small.BASE, None, folder, ids)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(tmp_path_factory.mktemp("exported") / "model", max_positions=POSITIONS)


@pytest.fixture
def verb(folder, capsys, monkeypatch):
    def run(name, *arguments, stdin="", status=0):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        assert main([name, "--model", str(folder), *arguments]) == status
        return capsys.readouterr()

    return run


SAMPLED = ["--temperature", "1.3", "--top-k", "50", "--min-p", "0.01", "--repetition-penalty", "1.2", "--seed", "4"]


@pytest.mark.parametrize("seed", [str(1 << 63), "-1", "ten"])
@pytest.mark.parametrize("name", ["generate", "chat"])
def test_a_seed_that_is_none_is_one_sentence(name, seed, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--model", "nowhere", "--seed", seed])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "--seed" in said and seed in said and said.count("\n") == 1


def test_a_byte_order_mark_before_a_prompt_is_no_text(verb, tmp_path):
    file = tmp_path / "prompt.txt"
    settings = ("--max-new-tokens", "2", "--json")
    expected = json.loads(verb("generate", "--prompt", "Asthma", *settings).out)
    for given in ((b"Asthma\n", ""), (b"\xef\xbb\xbfAsthma\r\n", "")):
        file.write_bytes(given[0])
        found = json.loads(verb("generate", "--prompt-file", str(file), *settings).out)
        assert [answer["prompt"] for answer in found] == ["Asthma"]
        assert found[0]["tokens"] == expected[0]["tokens"]
    (piped,) = json.loads(verb("generate", "--prompt", "-", *settings, stdin="\ufeffAsthma\n").out)
    assert piped["prompt"] == "Asthma"
    assert list(chats_of("\ufeffHello\n\nYes\n")) == ["Hello", "Yes"]


def chats_of(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(text))
        yield from _lines(somebody=False)


def test_json_tells_everything_and_the_stream_shows_the_same_text(verb, folder):
    arguments = ["--prompt", "Asthma", "--max-new-tokens", "20", *SAMPLED]
    (found,) = json.loads(verb("generate", *arguments, "--json").out)
    loaded, tokenizer = m1jax.load(folder)
    ids = tokenizer.encode("Asthma")
    settings = {"temperature": 1.3, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 4}
    assert found["tokens"] == loaded.generate(ids, 20, **settings, eos_id=tokenizer.eos_id)
    assert found["text"] == tokenizer.decode(found["tokens"])
    assert (found["prompt"], found["prompt_tokens"], found["new_tokens"]) == ("Asthma", len(ids), len(found["tokens"]))
    assert found["finish_reason"] == ("eos" if found["tokens"][-1] == 2 else "length")
    assert found["batch"]["prefill_tokens_per_second"] > 0 and found["batch"]["decode_tokens_per_second"] > 0
    printed = verb("generate", *arguments).out
    assert printed.startswith("Asthma" + shown(found["text"]))
    assert f"{found['new_tokens']} tokens, temperature 1.3, seed 4" in printed


def test_prompts_come_from_files_and_standard_input_too(verb, tmp_path):
    (tmp_path / "prompt.txt").write_text("哮喘\n", encoding="utf-8")
    arguments = ["--prompt", "-", "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "4"]
    found = json.loads(verb("generate", *arguments, "--json", stdin="a\nb\n").out)
    assert [answer["prompt"] for answer in found] == ["a\nb", "哮喘"]
    assert [answer["batch"]["prompts"] for answer in found] == [2, 2]
    shown = verb("generate", *arguments, stdin="a\nb\n").out
    assert "a\nb" + found[0]["text"].rstrip() in shown


def test_a_stop_string_is_cut(verb):
    (free,) = json.loads(verb("generate", "--prompt", "Asthma", "--max-new-tokens", "20", "--json").out)
    stop = free["text"][5:7]
    arguments = ["--prompt", "Asthma", "--max-new-tokens", "20", "--stop", "never", "--stop", stop, "--json"]
    (found,) = json.loads(verb("generate", *arguments).out)
    assert (found["text"], found["finish_reason"]) == (free["text"].split(stop)[0], "stop")


def test_an_interrupt_keeps_what_there_is(folder):
    loaded, tokenizer = m1jax.load(folder)
    generation = loaded.start([tokenizer.encode("Asthma")], 100, Sampling())

    def pressed():
        for number, found in enumerate(answers(generation, tokenizer)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield found

    (answer,), interrupted = read_all(pressed())
    assert interrupted
    assert 3 <= len(answer.tokens) < 100
    assert answer.finish_reason is None
    assert answer.tokens == loaded.generate(tokenizer.encode("Asthma"), len(answer.tokens))


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_stream(tmp_path):
    endless = export(tmp_path / "endless", max_positions=1_000_000)
    arguments = ["generate", "--model", str(endless), "--prompt", "Asthma", "--max-new-tokens", "900000"]
    with subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        begun = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b""
    assert begun.startswith(b"Asthma")
    assert "interrupted; prompt" in rest.decode()


def test_a_chat_answers_each_line_on_the_whole_conversation(verb, folder):
    lines = ["Is asthma <C_A> a disease?", "/strange", "哮喘?", "/reset", "Is asthma <C_A> a disease?", "/quit", "no"]
    arguments = ["--max-new-tokens", "12", "--json", "--system", "Be brief."]
    printed = verb("chat", *arguments, stdin="\n\n".join(lines))
    assert "/strange is unknown" in printed.err
    first, second, again = [json.loads(line) for line in printed.out.splitlines()]
    assert "chat format: Baichuan-M1, by the tokenizer's special tokens" in printed.err
    loaded, tokenizer = m1jax.load(folder)
    ids = [71, *tokenizer.encode("Be brief.")]
    for line, answer in ((lines[0], first), (lines[2], second)):
        ids += [73, *tokenizer.encode(line), 74]
        assert answer["tokens"] == loaded.generate(ids, 12, eos_id=chat.of(tokenizer).ends)
        assert answer["content"] == tokenizer.decode(answer["tokens"])
        ended = answer["finish_reason"] == "eos"
        ids += answer["tokens"][:-1] if ended else answer["tokens"]
        assert answer["context_tokens"] == len(ids)
    assert again == first


def test_a_chat_for_people_shows_text_and_the_usual_system_is_first(verb, folder):
    printed = verb("chat", "--max-new-tokens", "6", stdin="hello\n").out
    loaded, tokenizer = m1jax.load(folder)
    talk, system = chat.of(tokenizer), tokenizer.encode("You are a helpful assistant.")
    turns = talk.encode([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    assert turns[: len(system) + 1] == [71, *system]
    new = loaded.generate(turns, 6, eos_id=talk.ends)
    assert printed == shown(tokenizer.decode(new)) + "\n"


def test_what_a_model_says_cannot_steer_the_terminal(verb):
    assert shown("a\x1b[2J\x07\r\x9b\x7f\tb\nc") == "a␛[2J␇␍�␡\tb\nc"
    assert verb("generate", "--prompt", "As\x1b]0;x\x07", "--max-new-tokens", "3").out.startswith("As␛]0;x␇")


@pytest.mark.slow
def test_a_chat_at_a_terminal(folder):
    """Through a real terminal: help, a prompt for every line, an answer, Ctrl-C while waiting leaves."""
    outer, inner = pty.openpty()
    arguments = ["chat", "--model", str(folder), "--max-new-tokens", "6"]
    environment = {**os.environ, "TERM": "dumb"}
    with subprocess.Popen([*PROGRAM, *arguments], stdin=inner, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)

        def until(prompts):
            seen = ""
            while seen.count("> ") < prompts:
                seen += os.read(outer, 4096).decode(errors="replace")
            return seen

        assert HELP in until(1)
        os.write(outer, b"Is asthma a disease?\n")
        answered = until(1).replace("\r", "")
        loaded, tokenizer = m1jax.load(folder)
        talk = chat.of(tokenizer)
        turns = talk.encode([{"role": "user", "content": "Is asthma a disease?"}], add_generation_prompt=True)
        assert shown(tokenizer.decode(loaded.generate(turns, 6, eos_id=talk.ends))) in answered
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    os.close(outer)


def test_the_guides_python_runs_as_it_stands(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "generation.md", "exec"), names)
    assert len(blocks) == 4
    assert names["logits"].shape == (len(names["prompts"][0]), names["tokenizer"].vocab_size)
    assert capsys.readouterr().out
    assert [len(row) for row in names["best"]] == [8, 8]


def test_a_model_split_over_devices_says_the_same(verb):
    arguments = ["--prompt", "Asthma", "--max-new-tokens", "20", "--json"]
    one, two = (json.loads(verb("generate", *arguments, *more).out) for more in ([], ["--tensor", "2"]))
    assert one[0]["tokens"] == two[0]["tokens"]


@pytest.mark.parametrize(
    ("name", "arguments", "stdin", "sentence"),
    [
        ("generate", [], "", "there is no prompt"),
        ("generate", ["--prompt", "-"], "", "a prompt is empty"),
        ("generate", ["--prompt", "a", "--stop", ""], "", "stop string is empty"),
        ("generate", ["--prompt", "a", "--min-p", "2"], "", "min_p must be from 0 to 1"),
        ("generate", ["--prompt", "a", "--tensor", "9"], "", "--tensor 9 needs as many devices, there are 8"),
        ("generate", ["--prompt", "a", "--max-new-tokens", "160"], "", "need 161 positions"),
        ("generate", ["--prompt-file", "nowhere.txt"], "", "nowhere.txt: No such file"),
        ("chat", ["--max-new-tokens", "0"], "x\n", "max_new_tokens"),
        ("chat", ["--max-new-tokens", "9"], "a\n" + "long " * 99 + "\n", "the context is full"),
        ("chat", ["--chat-format", "Alpaca"], "a\n", "the chat format 'Alpaca' is unknown: use one of Baichuan-M1"),
        ("chat", ["--chat-format", "ChatML"], "a\n", "the tokenizer lacks <|im_start|>, <|im_end|>"),
    ],
)
def test_bad_requests(verb, name, arguments, stdin, sentence):
    errors = verb(name, *arguments, stdin=stdin, status=2).err.splitlines()
    assert sentence in errors[-1]
    assert [line for line in errors[:-1] if not line.startswith("chat format: ")] == []


def test_models_without_text_or_roles(folder, tmp_path, capsys, monkeypatch):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").unlink()
    for name in (["generate", "--prompt", "a"], ["chat"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
        assert main([name[0], "--model", str(tmp_path), *name[1:]]) == 2
        assert "holds no tokenizer.json" in capsys.readouterr().err


def test_a_model_with_a_template_and_several_end_tokens(folder, tmp_path, capsys, monkeypatch):
    """The template decides the format, and every end token that the model's files name ends an answer."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<C_Q>{{ m.content }}<C_A>{% endfor %}", encoding="utf-8"
    )
    loaded, tokenizer = m1jax.load(tmp_path)
    ids = [73, *tokenizer.encode("Asthma?"), 74]
    answer = loaded.generate(ids, 6)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [2, answer[3]]}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Asthma?\n"))
    assert main(["chat", "--model", str(tmp_path), "--max-new-tokens", "6", "--json"]) == 0
    printed = capsys.readouterr()
    assert "chat_template.jinja, which no known chat format reproduces (generation only)" in printed.err
    found = json.loads(printed.out)
    assert found["tokens"] == answer[: answer.index(answer[3]) + 1] and found["finish_reason"] == "eos"
    assert main(["generate", "--model", str(tmp_path), "--prompt", "Asthma", "--json"]) == 0
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "two"}))
    assert main(["generate", "--model", str(tmp_path), "--prompt", "Asthma"]) == 2
    assert "generation_config.json says eos_token_id = 'two'" in capsys.readouterr().err
