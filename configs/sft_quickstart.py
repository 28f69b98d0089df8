"""Fine-tunes the quickstart's model on conversations: see docs/sft.md.

For another model, take its `model` and the folder of the import as `train.initial`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["get_config"]()
    return ConfigDict(
        {
            "name": "sft_quickstart",
            "folder": "runs/sft_quickstart",
            "seed": 0,
            "model": base.model.to_dict(),
            "data": {
                "domains": ("text",),
                "vocab_size": base.data.vocab_size,
                "row_lengths": (512,),
                "heldout_share": 0.05,
            },
            "hardware": {"topology": "cpu"},
            "optimizer": {"eps": 1e-8, "weight_decay": 0.0},
            "train": {
                "initial": "runs/quickstart",
                "log_every": 10,
                "checkpoint_every": 50,
                "keep_checkpoints": 2,
                "validate_every": 20,
            },
            "stages": (
                {
                    "name": "sft",
                    "tokens": 1_000_000,
                    "row_length": 512,
                    "global_batch": 4,
                    "mixture": {"domain:text": 1.0},
                    "learning_rate": {"start": 1e-3, "end": 1e-4, "shape": "cosine", "warmup_steps": 5},
                    "rope_base": base.stages[-1]["rope_base"],
                    "skip_steps": False,
                },
            ),
        }
    )
