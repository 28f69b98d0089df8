"""A low-rank adapter beside the 14B, which is frozen in bfloat16: see docs/sft.md.

Meant for 16 TPU v5e chips of 16 GiB. Rank, learning rate, batch and tokens are our choice: set them to your data.
`train.initial` is the folder of the model.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("m1_14b.py")))["get_config"]()
    return ConfigDict(
        {
            "name": "m1_14b_lora",
            "folder": "runs/m1_14b_lora",
            "model": base.model.to_dict(),
            "data": {
                "domains": ("general", "medical"),
                "vocab_size": base.data.vocab_size,
                "row_lengths": (8192,),
                "heldout_share": 0.01,
            },
            "optimizer": {"eps": 1e-8, "weight_decay": 0.0},
            "train": {
                "initial": "models/m1_14b",
                "lora": {"rank": 16, "alpha": 32.0},
                "frozen_dtype": "bfloat16",
                "log_every": 10,
                "checkpoint_every": 200,
                "keep_checkpoints": 2,
                "remat": "block",
                "loss_chunk": 2**14,  # 1,024 tokens a chip
            },
            "mesh": {"fsdp": 16},
            "hardware": {"topology": "v5e:4x4"},
            "stages": (
                {
                    "name": "sft",
                    "tokens": 200 * 10**6,
                    "row_length": 8192,
                    "global_batch": 32,
                    "mixture": {"domain:general": 0.3, "domain:medical": 0.7},
                    "learning_rate": {"start": 2e-4, "end": 2e-5, "shape": "cosine", "warmup_steps": 20},
                    "rope_base": base.stages[-1]["rope_base"],
                    "skip_steps": False,
                },
            ),
        }
    )
