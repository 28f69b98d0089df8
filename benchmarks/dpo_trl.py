"""The peer of dpo.py: TRL's DPOTrainer, in an environment of its own. Usage: dpo_trl.py FOLDER BETA."""

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main() -> None:
    folder, beta = Path(sys.argv[1]), float(sys.argv[2])
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    data = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs])
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32, attn_implementation="sdpa")
        for name in ("policy", "reference")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    config = DPOConfig(
        output_dir=str(folder / "out"), beta=beta, per_device_train_batch_size=len(pairs), use_cpu=True,
        report_to="none",
        gradient_checkpointing=False, disable_dropout=True, dataloader_pin_memory=False, bf16=False,
    )  # fmt: skip
    trainer = DPOTrainer(policy, reference, config, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    told = {name: values[-1] for of_mode in trainer._metrics.values() for name, values in of_mode.items()}
    found = {name: value.grad.numpy() for name, value in trainer.model.named_parameters() if value.grad is not None}
    found |= {name: batch[name].numpy() for name in ("input_ids", "attention_mask", "completion_mask")}
    found |= {"loss": loss.item(), "reward_chosen": told["rewards/chosen"], "reward_rejected": told["rewards/rejected"]}
    np.savez(folder / "theirs.npz", **found)
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl")))


if __name__ == "__main__":
    main()
