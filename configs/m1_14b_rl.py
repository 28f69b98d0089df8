"""Rewards for the 14B, ELO first and then PPO, on one host of 4 TPU v5p chips: see docs/alignment.md.

`m1 rl` runs in one process, so that the whole chain is on one host: parameters, AdamW's moments, the reference in
bfloat16 and, while it samples, a copy of the model divided over the four chips. What the report does not disclose (all
but the order of the methods) is our choice. `train.initial` is the folder of the model that `m1 prefer` left.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ITERATIONS = {"elo": 100, "ppo": 300}
ROW_LENGTH, ROWS, MINIBATCHES = 8192, 16, 2
"""Rows of a step, with four continuations in each: of at most 2,048 tokens, prompt included."""


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("m1_14b_sft.py")))["get_config"]()
    config.name = "m1_14b_rl"
    config.folder = "runs/m1_14b_rl"
    config.objective = "policy"
    config.policy = ConfigDict(
        {
            "methods": {"elo": "elo", "ppo": "ppo"},
            "prompts": 16,
            "samples": 8,
            "minibatches": MINIBATCHES,
            "max_new_tokens": 1024,
            "slots": 32,
            "sampler_tensor": 4,
            "rewards": {"model:runs/m1_14b_reward": 1.0, "form": 0.0, "length": 0.0},
            "heldout_prompts": 64,
        }
    )
    config.data.row_lengths = (ROW_LENGTH,)
    config.train.initial = "runs/m1_14b_prefer"
    config.train.frozen_dtype = "bfloat16"
    config.train.accumulation = 4
    config.train.loss_chunk = 2**12  # 1,024 tokens a chip
    config.train.checkpoint_every = 20
    config.train.emergency_every = 0
    config.train.validate_every = 20
    config.mesh = ConfigDict({"fsdp": 4})
    config.hardware.topology = "v5p:2x2x1"
    rope_base = config.stages[-1]["rope_base"]
    config.stages = tuple(
        {
            "name": name,
            "tokens": iterations * MINIBATCHES * ROWS * ROW_LENGTH,
            "row_length": ROW_LENGTH,
            "global_batch": ROWS,
            "mixture": {"domain:general": 0.3, "domain:medical": 0.7},
            "learning_rate": {"start": 1e-6, "end": 1e-6, "warmup_steps": 10},
            "rope_base": rope_base,
            "skip_steps": False,
        }
        for name, iterations in ITERATIONS.items()
    )
    return config
