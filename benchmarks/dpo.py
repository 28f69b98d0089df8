"""Does our DPO compute what TRL's does? Loss, both rewards and the gradient of the same pairs under the same models.

    python -m venv trl_venv && trl_venv/bin/pip install torch trl==1.16.0
    python benchmarks/dpo.py --peer-python trl_venv/bin/python

The reference is SmolLM2-135M-Instruct, the policy the same with noise on every weight, both float32. TRL tokenises and
batches the pairs; we take its ids and its mask of what is learned. Rewards are small differences of large sums, so they
and the loss are compared as they are; the gradient tensor by tensor, as the norm of the difference over the norm of
TRL's. Ends with an error where anything differs by more than 1e-4.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from table import machine

ROOT = Path(__file__).resolve().parents[1]
LIMIT, BETA, NOISE = 1e-4, 0.1, 0.02
PAIRS = [
    ("Which organ pumps blood?", " The heart does.", " The liver."),
    ("What is in ICD-10 chapter IX?", " Diseases of the circulatory system.", " Diseases of the ear, I think, or eye."),
    ("Translate: 肺炎", " Pneumonia", " A fracture of the leg"),
    ("Is asthma a disease of the lung? Answer briefly.", " Yes.", " No, it is a kind of bone that fish have."),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", metavar="PYTHON", required=True, help="of an environment with torch and trl")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models(folder)
        (folder / "pairs.json").write_text(json.dumps(PAIRS), encoding="utf-8")
        peer = [args.peer_python, str(Path(__file__).with_name("dpo_trl.py")), str(folder), str(BETA)]
        versions = subprocess.run(peer, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        with np.load(folder / "theirs.npz") as arrays:
            theirs = dict(arrays)
        numbers, gradient = ours(folder, theirs)
    print(f"{machine(['jax'])}; peer: {versions}\n")
    print("| what | ours | TRL | difference |\n|---|---|---|---|")
    worst = 0.0
    for name, value in numbers.items():
        other = float(theirs[name])
        apart = abs(value - other)
        worst = max(worst, apart)
        print(f"| {name} | {value:.7f} | {other:.7f} | {apart:.1e} |")
    parts = {name: np.linalg.norm(own - theirs[name]) / np.linalg.norm(theirs[name]) for name, own in gradient.items()}
    name, apart = max(parts.items(), key=lambda item: item[1])
    print(f"| gradient, {len(parts)} tensors; the furthest: {name} | | | {apart:.1e} of its norm |")
    if max(worst, apart) > LIMIT:
        raise SystemExit(f"the sides differ by {max(worst, apart):.1e}, more than {LIMIT:g}")


def models(folder: Path) -> None:
    """Reference and policy for both sides: `reference`, `policy` as Llamas, and both as Baichuan-M1 checkpoints."""
    sys.path.insert(0, str(ROOT))
    import torch
    from safetensors.numpy import load_file, save_file

    from tests.convert import smollm2

    gguf = smollm2.extract(folder)
    llama = smollm2.llama(gguf)
    for name in ("reference", "policy"):
        if name == "policy":
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for weight in llama.parameters():
                    weight *= 1 + NOISE * torch.randn(weight.shape, generator=generator)
        llama.save_pretrained(folder / name)
        smollm2.write_tokenizer(gguf, folder / name)
        own = folder / f"{name}_m1"
        own.mkdir()
        smollm2.convert(gguf, own)
        tensors = load_file(own / "model.safetensors")
        given = {key: value.detach().numpy() for key, value in llama.state_dict().items()}
        save_file({key: packed(given, key) if "conv" not in key else value for key, value in tensors.items()},
                  own / "model.safetensors")  # fmt: skip


def packed(given: Any, key: str) -> Any:
    """A tensor of the Baichuan-M1 layout from those of a Llama: Q, K and V are one matrix there."""
    if not key.endswith("W_pack.weight"):
        return np.ascontiguousarray(given[key])
    return np.concatenate([given[key.replace("W_pack", f"{name}_proj")] for name in "qkv"])


def ours(folder: Path, theirs: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Loss and rewards, and the gradient by TRL's names."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from m1jax import loading
    from m1jax.config import file as config_file
    from m1jax.convert import config_json, hf
    from m1jax.objectives.preference import Preference
    from m1jax.objectives.reference import REFERENCE
    from m1jax.parallel import mesh as meshes
    from m1jax.train.objective import StageScalars

    model, base = config_json.read(folder / "policy_m1")[:2]
    model = dataclasses.replace(model, compute_dtype="float32", param_dtype="float32")
    keys = ["objective=preference", "preference.loss=dpo", f"preference.beta={BETA}"]
    config = dataclasses.replace(config_file.load("prefer_quickstart", keys), model=model)
    mesh = meshes.make(config.mesh, jax.devices()[:1])
    objective = Preference(config, mesh)

    def read(name: str) -> Any:
        initial = dataclasses.replace(config.train, initial=str(folder / f"{name}_m1"))
        target = loading.target_of(model)
        return loading.initial(dataclasses.replace(config, train=initial), target)

    reference = read("reference")

    def loss(params: Any) -> Any:
        terms = objective.terms({**params, REFERENCE: reference}, batch(theirs), StageScalars(base, False))
        return terms.loss.value, terms.reported

    (value, reported), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(read("policy"))
    rewards = {name: float(reported[name].value) for name in ("reward_chosen", "reward_rejected")}
    (folder / "gradient").mkdir()
    hf.export(gradient, model, base, None, folder / "gradient", {"bos_token_id": 1, "eos_token_id": 2})
    from safetensors.numpy import load_file

    tensors: dict[str, Any] = {}
    for file in sorted((folder / "gradient").glob("*.safetensors")):
        tensors |= load_file(file)
    given = {key: value for key, value in theirs.items() if key.endswith("weight")}
    found = {}
    for key, tensor in tensors.items():
        if "conv" not in key and key != "lm_head.weight":
            theirs[key] = packed(given, key)
            found[key] = tensor
    return {"loss": float(value), **rewards}, found


def batch(theirs: dict[str, Any]) -> dict[str, Any]:
    """A row for each pair, from TRL's ids, whose first half of rows are the chosen answers."""
    ids, mask, learned = (theirs[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    pairs, length = len(ids) // 2, ids.shape[1]
    made = {name: np.zeros((pairs, 2 * length), np.int32) for name in
            ("tokens", "targets", "segment_ids", "positions", "pair", "side")}  # fmt: skip
    made["weights"] = np.zeros((pairs, 2 * length), np.float32)
    for number in range(pairs):
        at = 0
        for side, line in ((1, number), (0, pairs + number)):
            real = np.flatnonzero(mask[line])
            text, counted = ids[line][real], learned[line][real]
            whole = slice(at, at + len(text))
            made["tokens"][number, whole], made["segment_ids"][number, whole] = text, 2 - side
            made["positions"][number, whole] = np.arange(len(text))
            made["targets"][number, at : whole.stop - 1] = text[1:]
            made["weights"][number, at : whole.stop - 1] = counted[1:]
            made["pair"][number, whole], made["side"][number, whole] = number, side
            at = whole.stop
    return made


if __name__ == "__main__":
    main()
