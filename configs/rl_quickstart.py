"""Trains the fine-tuned model of `make quickstart` by rewards, ELO first and then PPO: see docs/alignment.md.

For another model, take its `model` and its folder as `train.initial`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

ITERATIONS = {"elo": 15, "ppo": 60}
RATE = 3e-4
ROWS, ROW_LENGTH, MINIBATCHES, EPOCHS = 16, 640, 2, 2
"""Rows of a step, with four continuations in each: of at most 160 tokens, prompt included."""
STEPS = MINIBATCHES * EPOCHS


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
            "samples": 8,
            "minibatches": MINIBATCHES,
            "epochs": EPOCHS,
            "slots": 32,
            "max_new_tokens": 32,
            "kl_weight": 0.02,
            "max_kl": 1.0,
            "only": ("synonym*", "term*", "hierarchy*", "phenotype*"),
            # The words of the answer are rewarded; that it is the answer is only reported.
            "rewards": {"words": 1.0, "exact": 0.0},
            "heldout_prompts": 512,
        }
    )
    config.optimizer.weight_decay = 0.0
    config.data.heldout_share = 0.15
    config.train.initial = "runs/quickstart/sft"
    config.data.row_lengths = (ROW_LENGTH,)
    config.train.checkpoint_every = 10 * STEPS
    config.train.validate_every = 30 * STEPS
    (stage,) = config.stages
    stage = stage.to_dict() if isinstance(stage, ConfigDict) else dict(stage)
    config.stages = tuple(
        {
            **stage,
            "name": name,
            "row_length": ROW_LENGTH,
            "global_batch": ROWS,
            "tokens": iterations * STEPS * ROWS * ROW_LENGTH,
            "learning_rate": {"start": RATE, "end": RATE, "warmup_steps": 5},
        }
        for name, iterations in ITERATIONS.items()
    )
    return config
