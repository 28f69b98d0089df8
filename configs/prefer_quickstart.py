"""Trains the fine-tuned model of `make quickstart` on preferences (TDPO): see docs/alignment.md.

For another model, take its `model` and its folder as `train.initial`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("sft_quickstart.py")))["get_config"]()
    config.name = "prefer_quickstart"
    config.folder = "runs/prefer_quickstart"
    config.objective = "preference"
    config.preference = ConfigDict({"loss": "tdpo2", "beta": 0.1, "alpha": 0.5})
    config.train.initial = "runs/quickstart/sft"
    config.train.validate_tokens = 40_000
    (stage,) = config.stages
    stage = stage.to_dict() if isinstance(stage, ConfigDict) else dict(stage)
    rate = {"start": 2e-4, "end": 2e-5, "shape": "cosine", "warmup_steps": 10}
    config.stages = ({**stage, "name": "preferences", "tokens": 300_000, "learning_rate": rate},)
    return config
