#!/bin/bash
# transformers 5.24: `generate` no longer gives the cache to a model of one's own under the name that its forward has.
#
# Expected: from 5.23 to 5.24, a minor release, a model whose forward takes `past_key_values`, as that of many folders
# with their own code does, receives the cache as before: outputs and `generate` still accept the old name.
# Seen: `generate` passes it as `cache`. A forward that also takes **kwargs, as transformers' guides advise, accepts it
# silently and computes without it: from the second step on it sees one token without anything before it.
# What helps: take `cache` beside `past_key_values`, and return it under the name that the output class has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat >"$folder/generate.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class Config(PretrainedConfig):
    model_type = "counting"
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 8, 4, 1, 1


class Model(PreTrainedModel, GenerationMixin):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear(4, 8)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, past_key_values=None, **kwargs):
        seen.append("past_key_values" if past_key_values is not None else "cache" if kwargs.get("cache") else "nothing")
        logits = torch.zeros(*input_ids.shape, 8)
        logits[..., 3] = 1
        return CausalLMOutputWithPast(None, logits, past_key_values)


seen = []
Model(Config()).generate(torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
print(f"transformers {transformers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print("the cache came as:", seen)
if set(seen) != {sys.argv[1]}:
    sys.exit("the behaviour changed")
PYTHON
for version in 5.23.0:past_key_values 5.24.0:cache; do
  "$folder/venv/bin/pip" install -q "transformers==${version%:*}"
  "$folder/venv/bin/python" "$folder/generate.py" "${version#*:}" 2>/dev/null
done
echo "the behaviour is as described"
