"""Full fine-tuning of the 14B on conversations, general and medical, then long ones: see docs/sft.md.

Meant for 32 TPU v5p chips. The rounds' order and the learning rate (cosine from 2e-5) are the report's; tokens, batch
and mixtures are our choice: set them to your data. `train.initial` is the folder of the model.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

M = 10**6
BATCH_TOKENS = 2**20


def get_config() -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("m1_14b.py")))["get_config"]()

    def stage(name: str, tokens: int, row_length: int, mixture: dict[str, float], start: float, end: float) -> dict:
        return {
            "name": name,
            "tokens": tokens,
            "row_length": row_length,
            "global_batch": BATCH_TOKENS // row_length,
            "mixture": mixture,
            "learning_rate": {"start": start, "end": end, "shape": "cosine"},
            "rope_base": base.stages[-1]["rope_base"],
            "skip_steps": False,
        }

    return ConfigDict(
        {
            "name": "m1_14b_sft",
            "folder": "runs/m1_14b_sft",
            "model": base.model.to_dict(),
            "data": {
                "domains": ("general", "medical"),
                "vocab_size": base.data.vocab_size,
                "row_lengths": (8192, 32_768),
                "heldout_share": 0.01,
            },
            "optimizer": {"eps": 1e-8, "weight_decay": 0.0},
            "train": {
                "initial": "models/m1_14b",
                "log_every": 10,
                "checkpoint_every": 200,
                "emergency_every": 50,
                "keep_checkpoints": 2,
                "remat": "block",
                "accumulation": 2,
                "loss_chunk": 2**15,  # 2,048 tokens a row's chips
            },
            "mesh": {"fsdp": 16, "context": 2},
            "hardware": {"topology": "v5p:2x4x4"},
            "stages": (
                stage("general", 800 * M, 8192, {"domain:general": 0.9, "domain:medical": 0.1}, 2e-5, 1.5e-5),
                stage("medical", 800 * M, 8192, {"domain:general": 0.3, "domain:medical": 0.7}, 1.5e-5, 5e-6),
                stage("long", 400 * M, 32_768, {"domain:general": 0.3, "domain:medical": 0.7}, 5e-6, 1e-6),
            ),
        }
    )
