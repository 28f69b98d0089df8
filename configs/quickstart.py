"""The whole road in ten minutes on two CPU cores: a Baichuan-M1 of a few million parameters, all three stages.

Expect (two cores of a Xeon with AVX-512, no GPU): see docs/quickstart.md for the loss curve, the bits per byte and
the time that this file really took.
"""

from ml_collections import ConfigDict

EASY = {"wordnet": 0.5, "domain:general": 0.5}
MEDICAL = {"domain:general": 0.25, "domain:medical": 0.75}
ANNEAL = {"domain:medical": 1.0}


def get_config() -> ConfigDict:
    vocab_size = 8192
    return ConfigDict(
        {
            "name": "quickstart",
            "folder": "runs/quickstart",
            "seed": 0,
            "model": {
                "vocab_size": vocab_size,
                "hidden": 192,
                "ffn": 512,
                "num_layers": 4,
                "num_heads": 4,
                "num_kv_heads": 2,
                "window_num_heads": 6,
                "window_num_kv_heads": 3,
                "window": 256,
                "norm_eps": 1e-6,
                "init_std": 0.06,
                "max_positions": 2048,
                # A step took 0.25 s so and 0.39 s in float32, with AVX512-BF16; without it float32 may be faster.
                "compute_dtype": "bfloat16",
            },
            "data": {
                "domains": ("general", "medical"),
                "vocab_size": vocab_size,
                "source_bytes": {"poetry": 12_000_000},  # a sixth of the poems, so that prose stays the larger part
                "tokenizer_bytes": 20_000_000,
                "row_lengths": (512, 2048),
                "packing_window": 4096,
            },
            "hardware": {"topology": "cpu"},
            # 40 norms are full in the first stage, so that the skipping clip can act there.
            "optimizer": {"eps": 1e-8, "name": "muon", "clip": {"history": 40}},
            "train": {
                "log_every": 20,
                "checkpoint_every": 100,
                "keep_checkpoints": 2,
                "remat": "dots",
                "validate_every": 200,
                "validate_tokens": 2048,
            },
            "stages": (
                {
                    "name": "general",
                    "tokens": 250_000,
                    "row_length": 512,
                    "global_batch": 4,
                    "mixture": EASY,
                    "learning_rate": {"start": 3e-3, "end": 3e-3, "warmup_steps": 30},
                    "rope_base": 1e4,
                },
                {
                    "name": "medical",
                    "tokens": 1_200_000,
                    "row_length": 512,
                    "global_batch": 4,
                    "mixture": MEDICAL,
                    "learning_rate": {"start": 3e-3, "end": 3e-3},
                    "rope_base": 1e4,
                    "skip_steps": False,
                },
                {
                    "name": "annealing",
                    "tokens": 900_000,
                    "row_length": 2048,
                    "global_batch": 2,
                    "mixture": ANNEAL,
                    "learning_rate": {"start": 3e-3, "end": 5e-5, "shape": "cosine"},
                    "rope_base": 1e5,
                    "skip_steps": False,
                },
            ),
        }
    )
