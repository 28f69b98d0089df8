"""The whole road in ten minutes on two CPU cores: a Baichuan-M1 of a few million parameters, all three stages.

Expect (two cores of a Xeon with AVX-512, no GPU): see docs/quickstart.md for the loss curve, the bits per byte and
the time that this file really took.
"""

from ml_collections import ConfigDict

EASY = {"wordnet": 0.5, "domain:general": 0.5}
MEDICAL = {"domain:general": 0.25, "domain:medical": 0.75}
ANNEAL = {"domain:general": 0.1, "domain:medical": 0.9}


def get_config() -> ConfigDict:
    vocab_size = 8192
    return ConfigDict(
        {
            "name": "quickstart",
            "folder": "runs/quickstart",
            "seed": 0,
            "model": {
                "vocab_size": vocab_size,
                "hidden": 256,
                "ffn": 768,
                "num_layers": 4,
                "num_heads": 4,
                "num_kv_heads": 2,
                "window_num_heads": 8,
                "window_num_kv_heads": 4,
                "window": 256,
                "norm_eps": 1e-6,
                "init_std": 0.02,
                "max_positions": 2048,
            },
            "data": {"vocab_size": vocab_size, "row_lengths": (512, 2048), "window_documents": 4096},
            "optimizer": {"eps": 1e-8},
            "train": {"log_every": 10, "checkpoint_every": 40, "keep_checkpoints": 2},
            "stages": (
                {
                    "name": "general",
                    "tokens": 400_000,
                    "row_length": 512,
                    "global_batch": 8,
                    "mixture": EASY,
                    "learning_rate": {"start": 3e-3, "end": 3e-3, "warmup_steps": 20},
                    "rope_base": 1e4,
                },
                {
                    "name": "medical",
                    "tokens": 800_000,
                    "row_length": 512,
                    "global_batch": 8,
                    "mixture": MEDICAL,
                    "learning_rate": {"start": 3e-3, "end": 3e-3},
                    "rope_base": 1e4,
                },
                {
                    "name": "annealing",
                    "tokens": 400_000,
                    "row_length": 2048,
                    "global_batch": 2,
                    "mixture": ANNEAL,
                    "learning_rate": {"start": 3e-3, "end": 1.5e-4, "shape": "cosine"},
                    "rope_base": 1e5,
                },
            ),
        }
    )
