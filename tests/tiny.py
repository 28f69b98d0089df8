"""The whole road in seconds: the shape of configs/quickstart.py, everything small."""

from ml_collections import ConfigDict


def get_config():
    stage = {"global_batch": 8, "rope_base": 1e4}
    rate = {"start": 5e-3, "end": 5e-3}
    general, medical = {"domain:general": 1.0}, {"domain:general": 0.25, "domain:medical": 0.75}
    return ConfigDict(
        {
            "name": "tiny",
            "folder": "to be overridden",
            "model": {
                "vocab_size": 512,
                "hidden": 32,
                "ffn": 48,
                "num_layers": 4,
                "num_heads": 2,
                "num_kv_heads": 1,
                "window_num_heads": 4,
                "window_num_kv_heads": 2,
                "window": 16,
                "norm_eps": 1e-6,
                "init_std": 0.02,
                "max_positions": 512,
            },
            "data": {
                "domains": ("general", "medical"),
                "vocab_size": 512,
                "row_lengths": (64, 128),
                "packing_window": 64,
                "heldout_share": 0.05,
            },
            "optimizer": {"eps": 1e-8, "clip": {"history": 8}},
            "train": {"log_every": 5, "checkpoint_every": 4, "loss_chunk": 256},
            "stages": (
                {**stage, "name": "general", "tokens": 6 * 512, "row_length": 64, "mixture": general}
                | {"learning_rate": {**rate, "warmup_steps": 2}},
                {**stage, "name": "medical", "tokens": 6 * 512, "row_length": 64, "mixture": medical}
                | {"learning_rate": rate},
                {**stage, "name": "annealing", "tokens": 6 * 1024, "row_length": 128, "mixture": medical}
                | {"learning_rate": {"start": 5e-3, "end": 1e-4, "shape": "cosine"}, "rope_base": 1e5},
            ),
        }
    )
