"""Trains the fine-tuned model of `make quickstart` by rewards, ELO first and then PPO: see docs/alignment.md.

For another model, take its `model` and its folder as `train.initial`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ITERATIONS, RATES = {"elo": 20, "ppo": 40}, {"elo": 3e-4, "ppo": 5e-4}
"""Of each stage."""
ROWS, ROW_LENGTH = 16, 512
"""Rows of a step, with four continuations in each: of at most 128 tokens, prompt included."""


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("sft_quickstart.py")))["get_config"]()
    config.name = "rl_quickstart"
    config.folder = "runs/rl_quickstart"
    config.objective = "policy"
    config.model.compute_dtype = "float32"
    config.policy = ConfigDict(
        {
            "methods": {"elo": "elo", "ppo": "ppo"},
            "prompts": 16,
            "samples": 4,
            "slots": 32,
            "max_new_tokens": 32,
            "only": ("extraction*", "is-a*"),
            # The words of the answer are rewarded; that it is the answer is only reported.
            "rewards": {"words": 1.0, "exact": 0.0},
            "heldout_prompts": 256,
        }
    )
    config.optimizer.weight_decay = 0.0
    config.data.heldout_share = 0.15
    config.train.initial = "runs/quickstart/sft"
    config.train.checkpoint_every = 10
    config.train.validate_every = 20
    (stage,) = config.stages
    stage = stage.to_dict() if isinstance(stage, ConfigDict) else dict(stage)
    config.stages = tuple(
        {
            **stage,
            "name": name,
            "row_length": ROW_LENGTH,
            "global_batch": ROWS,
            "tokens": iterations * ROWS * ROW_LENGTH,
            "learning_rate": {"start": RATES[name], "end": RATES[name], "warmup_steps": 5},
        }
        for name, iterations in ITERATIONS.items()
    )
    return config
