"""Preferences (TDPO2) for the fine-tuned 14B, with itself as a reference in bfloat16: see docs/alignment.md.

Meant for 32 TPU v5p chips. The report names TDPO and no numbers: tokens, batch, learning rate and the paper's beta and
alpha are our choice. `train.initial` is the folder of the fine-tuned model.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

M = 10**6
ROW_LENGTH, ROWS = 8192, 64


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("m1_14b_sft.py")))["get_config"]()
    config.name = "m1_14b_prefer"
    config.folder = "runs/m1_14b_prefer"
    config.objective = "preference"
    config.preference = ConfigDict({"loss": "tdpo2", "beta": 0.1, "alpha": 0.5})
    config.data.row_lengths = (ROW_LENGTH,)
    config.train.initial = "runs/m1_14b_sft"
    config.train.frozen_dtype = "bfloat16"
    config.train.accumulation = 1
    config.train.loss_chunk = 2**14  # 512 tokens a chip
    config.train.validate_every = 50
    config.mesh = ConfigDict({"fsdp": 32})
    rope_base = config.stages[-1]["rope_base"]
    config.stages = (
        {
            "name": "preferences",
            "tokens": 200 * ROWS * ROW_LENGTH,
            "row_length": ROW_LENGTH,
            "global_batch": ROWS,
            "mixture": {"domain:general": 0.3, "domain:medical": 0.7},
            "learning_rate": {"start": 5e-7, "end": 5e-8, "shape": "cosine", "warmup_steps": 20},
            "rope_base": rope_base,
            "skip_steps": False,
        },
    )
    return config
