#!/bin/bash
# peft 0.21.2: the files of an adapter that began with PiSSA do not say what is added to the model that they name.
#
# Expected: a LoRA's files hold A and B, and with them the layer is W + alpha / rank · B A of the model beside which it was
# saved, as for every LoRA whose config names the same rank and alpha.
# Seen: beginning with init_lora_weights="pissa" takes the first principal parts out of W, and so does every loading of the
# saved adapter, because its config holds that word. The layer is (W - part) + alpha / rank · B A. A program that reads the
# two matrices and adds their product to the model gives other outputs and no error; before any training the outputs of
# peft's model are those of the model alone, and those of the sum are not.
# What helps: refuse an adapter whose init_lora_weights is not one of those that leave W alone, or merge it with peft.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q peft==0.21.2 torch==2.14.1 transformers==5.24.0 safetensors
cat >"$folder/begin.py" <<'PYTHON'
import json
import pathlib
import platform
import sys

import peft
import torch
from safetensors.torch import load_file


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(16, 24, bias=False, dtype=torch.float32)

    def forward(self, x):
        return self.up(x)


def fresh():
    torch.manual_seed(0)
    return Layer()


x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
for begin, added in ((True, True), ("orthogonal", True), ("pissa", False), ("olora", False)):
    folder = pathlib.Path(sys.argv[1]) / str(begin)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["up"], init_lora_weights=begin)
    ours = peft.get_peft_model(fresh(), config)
    ours.save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["init_lora_weights"] == begin
    again = peft.PeftModel.from_pretrained(fresh(), folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (a,), (b,) = ([value for name, value in tensors.items() if letter in name] for letter in ("lora_A", "lora_B"))
    with torch.no_grad():
        alone, loaded, summed = fresh()(x), again(x), x @ (fresh().up.weight + b @ a).T
    far = (loaded - summed).abs().max().item()
    print(f"{begin}: peft's model and the model alone differ by {(loaded - alone).abs().max():.1e}, and W + B A by {far:.1e}")
    assert torch.allclose(loaded, alone, atol=1e-5) and (far < 1e-5) is added
print(f"Python {platform.python_version()}, peft {peft.__version__}, torch {torch.__version__}")
PYTHON
"$folder/venv/bin/python" "$folder/begin.py" "$folder"
