"""`m1 sft` with an adapter, and where other programs stop: they answer what `m1 chat` does, and no token more."""

import json
import shutil

import pytest
import torch
from mlx_lm.utils import load as load_mlx
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

from m1jax import loading
from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM
from m1jax.generate.chat import Conversation
from m1jax.generate.sampling import Sampling
from m1jax.tokenizer import chat
from m1jax.train.hooks.journal import read_journal
from m1jax.verbs import main
from tests.verbs.test_bad_input import refused
from tests.verbs.test_sft import command

LONGEST = 12
QUESTIONS = ("What is 3?", "Where is the heart?")


@pytest.fixture(scope="module")
def tuned(road, tmp_path_factory):
    """An adapter beside the road's exported model, trained on forty short conversations."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "talks").mkdir()
    talks = []
    for i in range(40):
        asked = {"role": "user", "content": f"What is {i}?"}
        talks.append({"messages": [asked, {"role": "assistant", "content": f"It is {i}."}] * 2})
    (folder / "talks" / "a.jsonl").write_text("\n".join(map(json.dumps, talks)))
    settings = {"train__initial": road / "export", "train__lora__rank": 8, "train__lora__alpha": 16.0}
    settings |= {"train__validate_every": 0, "stages__0__tokens": 24 * 1024}
    words = command(folder / "run", **settings)
    assert main([*words, "--conversations", str(folder / "talks")]) == 0
    return folder / "run", settings


def asked(folder):
    """The ids of an answer to each question, as `m1 chat` gives them, with the token that ended it."""
    model, tokenizer = loading.load(folder, dtype="float32")
    form, found = chat.of(tokenizer), {}
    for question in QUESTIONS:
        talk = Conversation(model, tokenizer, form)
        answer = list(talk.ask(question, LONGEST, Sampling(), seed=0))[-1][0]
        found[question] = (answer.tokens, answer.finish_reason)
    return found


def test_it_trains_few_parameters_and_continues_without_the_model(tuned, tmp_path, capsys):
    folder = shutil.copytree(tuned[0], tmp_path / "run")
    words = command(folder, **{**tuned[1], "train__initial": "gone"})
    losses = [line["loss"] for line in read_journal(folder / "train" / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    shutil.rmtree(folder / "checkpoints" / "24")
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Continuing after step 20 of 24" in out and "trained), 24 steps" in out
    assert [line["loss"] for line in read_journal(folder / "train" / "metrics.jsonl")] == losses
    refused(capsys, [*words, "--set", "train.lora.rank=4"], "train.lora.rank was 8, is 4", "another folder")


def test_pytorch_and_mlx_stop_where_m1_chat_does(tuned, road, tmp_path):
    folder, _ = tuned
    expected = asked(folder)
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert main(["export", "--model", str(folder), "--adapter", "--out", str(tmp_path / "adapter")]) == 0
    base = BaichuanM1ForCausalLM.from_pretrained(road / "export", dtype=torch.float32)
    merged = BaichuanM1ForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    both = PeftModel.from_pretrained(base, tmp_path / "adapter")
    ends = GenerationConfig.from_pretrained(tmp_path / "adapter")
    assert ends.eos_token_id == merged.generation_config.eos_token_id == base.generation_config.eos_token_id
    # Tokens of roles too, which config.json does not name: they end an answer before another turn.
    form = chat.of(loading.load(folder)[1])
    assert set(ends.eos_token_id) == set(form.ends) and len(form.ends) > 1
    assert all(finish == "eos" for _, finish in expected.values())
    for question, (ids, _) in expected.items():
        for model, place in ((merged, tmp_path / "merged"), (both, tmp_path / "adapter")):
            tokenizer = AutoTokenizer.from_pretrained(place)
            talk = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(
                talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            out = model.generate(**prompt, max_new_tokens=LONGEST, do_sample=False)[0, prompt["input_ids"].shape[1] :]
            assert out.tolist() == ids
    _, tokenizer = load_mlx(str(tmp_path / "merged"))
    assert set(tokenizer.eos_token_ids) == set(ends.eos_token_id)
