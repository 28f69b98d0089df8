"""An export works where only torch and transformers are: a process of its own, in which all else cannot be imported."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from m1jax import convert
from m1jax import tokenizer as tokenizers
from m1jax.generate.engine import LanguageModel
from m1jax.tokenizer import train
from tests.convert import torch_exports as exports

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "pytorch.md"
TEXTS = ["What lowers a fever? Paracetamol lowers a fever.", "患者发热三天，体温39度。"] * 20
TALK = [{"role": "user", "content": "What lowers a fever? 发热"}]
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# A name that is None in sys.modules counts as not installed.
_ALONE = """
import sys
OTHERS = ("m1jax", "jax", "jaxlib", "flax", "optax", "orbax", "grain", "seqio", "tensorflow", "mlx", "mlx_lm", "tests")
sys.modules.update({name: None for name in OTHERS})
"""
_ANSWERS = """
import json
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokens = torch.tensor(json.load(open("tokens.json")))
tokenizer = AutoTokenizer.from_pretrained("export")
found = AutoModelForCausalLM.from_pretrained("export", trust_remote_code=True)
chat = tokenizer.apply_chat_template(json.load(open("talk.json")), add_generation_prompt=True, return_dict=False)
with torch.no_grad():
    torch.save(found(tokens).logits, "logits.pt")
settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None}
greedy = found.generate(tokens[:1], **settings)[0, tokens.shape[1]:].tolist()
answer = found.generate(torch.tensor([chat]), **settings)[0, len(chat):].tolist()
loaded = [name for name in OTHERS if sys.modules[name] is not None]
json.dump({"chat": chat, "greedy": greedy, "answer": answer, "loaded": loaded}, open("answers.json", "w"))
"""


def alone(program, folder):
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ALONE + program],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={"HOME": str(folder), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(model, tokenizer, its folder's parent) of an export with everything in it; config, parameters and tokenizer."""
    folder = tmp_path_factory.mktemp("alone")
    tokenizer = train(iter(TEXTS), 420)
    tokenizer.save(folder / "tokenizer")
    config = exports.config(vocab_size=420)
    parameters = exports.parameters(config, 5)
    (folder / "export").mkdir()
    convert.export(parameters, config, exports.BASE, folder / "tokenizer", folder / "export", IDS)
    return LanguageModel(config, exports.BASE, parameters), tokenizer, folder


def test_it_answers_as_m1jax_does(exported):
    ours, tokenizer, folder = exported
    tokens = np.random.default_rng(0).integers(3, 420, (2, 40))
    (folder / "tokens.json").write_text(json.dumps(tokens.tolist()))
    (folder / "talk.json").write_text(json.dumps(TALK))
    alone(_ANSWERS, folder)
    answers = json.loads((folder / "answers.json").read_text())
    assert answers["loaded"] == []
    exports.assert_close(torch.load(folder / "logits.pt"), torch.tensor(np.array(ours(tokens))))
    assert answers["greedy"] == ours.generate(tokens[0].tolist(), max_new_tokens=64)
    default = tokenizer.encode("You are a helpful assistant.")
    assert answers["chat"] == [71, *default, 73, *tokenizer.encode(TALK[0]["content"]), 74]
    assert answers["answer"] == ours.generate(answers["chat"], max_new_tokens=64)


@pytest.mark.slow
def test_the_guide_is_true(exported):
    _, tokenizer, folder = exported
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    alone("\n".join(blocks) + "\nassert losses[-1] < 0.95 * losses[0], losses", folder)
    tuned = folder / "tuned"
    config, _, parameters = convert.read(tuned)
    assert config.layer_kinds == ("global", "window") * 2
    again = """
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("tuned", trust_remote_code=True)
found = AutoModelForCausalLM.from_pretrained("tuned", trust_remote_code=True)
talk = [{"role": "code", "content": "x"}]
print(found.lm_head.weight.double().sum().item(), tokenizer.apply_chat_template(talk, tokenize=False))
"""
    total, chat = alone(again, folder).strip().split(" ", 1)
    assert float(total) == pytest.approx(np.asarray(parameters["head"]["weight"], np.float64).sum())
    assert chat == "<B_SYS>You are a helpful assistant.<B_CODE>x"
    assert tokenizers.load(tuned).encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
