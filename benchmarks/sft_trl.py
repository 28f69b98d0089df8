"""The peer of sft.py: transformers with TRL's SFTTrainer. It runs in an environment of its own, without m1jax.

It is started by sft.py, and speaks with it in lines of JSON: first the check and the versions, then, for each line that
it reads, [loss, targets, tokens, seconds] of one optimiser step.
"""

import json
import math
import os
import sys
import time
from importlib import metadata
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

PACKAGES = ("torch", "transformers", "trl", "accelerate")


def main() -> None:
    cell = json.loads(sys.argv[1])
    torch.set_num_threads(cell["threads"])
    # What trainers print must not come between the lines of JSON.
    answers, sys.stdout = sys.stdout, sys.stderr
    model = AutoModelForCausalLM.from_pretrained(
        cell["model"], dtype=torch.float32, attn_implementation=cell["attention"]
    )
    tokenizer = AutoTokenizer.from_pretrained(cell["model"])

    def say(what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    check = make(cell, model, tokenizer, load(cell["check"]))
    loss, targets, rows = measured(check)
    own_labels = make(cell, model, tokenizer, load(cell["messages"])).train_dataset["labels"]
    own_targets = sum(label != -100 for row in own_labels for label in row)
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    say({"loss": loss, "targets": targets, "rows": rows, "own_targets": own_targets, "versions": versions})
    trainer = make(cell, model, tokenizer, load(cell["examples"]))
    trainer.add_callback(Turns(trainer, say))
    trainer.train()


def load(path: str) -> Dataset:
    """A file's lines."""
    with open(path, encoding="utf-8") as file:
        return Dataset.from_list([json.loads(line) for line in file])


def make(cell: dict[str, Any], model: Any, tokenizer: Any, data: Dataset) -> SFTTrainer:
    """TRL's trainer, packing on, with the batch as one forward pass or row by row."""
    rows = 1 if cell["row_by_row"] else cell["rows"]
    config = SFTConfig(
        output_dir=cell["output"],
        packing=True,
        max_length=cell["length"],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=cell["rows"] // rows,
        gradient_checkpointing=cell["checkpointing"],
        max_steps=cell["steps"],
        learning_rate=cell["rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=cell["dtype"] == "bfloat16",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        dataloader_pin_memory=False,
        seed=0,
    )
    return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)


def measured(trainer: SFTTrainer) -> tuple[float, int, int]:
    """Mean loss of all of a trainer's data as it packs them, before any step; its targets and rows."""
    total, targets = 0.0, 0
    trainer.model.eval()
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            count = int((batch["labels"] != -100).sum())
            # As training computes: its trainer would have wrapped the model.
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(count))
            total, targets = total + float(loss) * count, targets + count
    trainer.model.train()
    return total / targets if targets else math.nan, targets, len(trainer.train_dataset)


class Turns(TrainerCallback):
    """Waits for a line before each step, and answers with what the step came to."""

    def __init__(self, trainer: SFTTrainer, say: Any) -> None:
        self._say, self._loss, self._targets, self._tokens = say, 0.0, 0, 0
        inner = trainer.compute_loss

        def counted(model: Any, inputs: dict[str, Any], *args: Any, **rest: Any) -> Any:
            self._targets += int((inputs["labels"] != -100).sum())
            self._tokens += inputs["input_ids"].numel()
            loss = inner(model, inputs, *args, **rest)
            self._loss += float(loss.detach())
            return loss

        trainer.compute_loss = counted

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """The clock starts when the word comes; the batch is at hand by then."""
        if not sys.stdin.readline():
            os._exit(0)
        self._loss, self._targets, self._tokens = 0.0, 0, 0
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """The parameters have moved."""
        seconds = time.perf_counter() - self._begun
        self._say([self._loss, self._targets, self._tokens, seconds])


if __name__ == "__main__":
    main()
