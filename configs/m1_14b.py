"""Baichuan-M1-14B: the released geometry and the report's three stages (arXiv 2502.12671), 20T tokens.

14,470,764,320 parameters. Meant for 64 TPU v5p chips; `m1 plan` has compiled it for them and for others, what it needs
and takes there at best is in docs/plan.md. Tokens, contexts, learning rates and RoPE bases are the report's; the batch
of 2^24 tokens is our reading of its "16M"; what it leaves undisclosed (norm_eps, init_std, Adam's eps, the mixtures) is
our choice and marked.
"""

from ml_collections import ConfigDict

T = 10**12
BATCH_TOKENS = 2**24


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "m1_14b",
            "folder": "runs/m1_14b",
            "model": {
                "vocab_size": 133_120,
                "hidden": 5120,
                "ffn": 17_408,
                "num_layers": 40,
                "num_heads": 20,
                "num_kv_heads": 2,
                "window_num_heads": 40,
                "window_num_kv_heads": 8,
                "window": 8192,
                "norm_eps": 1e-6,  # undisclosed; the reference class's default
                "init_std": 0.02,  # undisclosed
                "max_positions": 32_768,
                "param_dtype": "float32",
                "compute_dtype": "bfloat16",
                "attention": "pallas_tpu",
            },
            "data": {
                "domains": ("general", "medical"),
                "vocab_size": 133_120,
                "vocab_parts": ({"domain": "general", "ids": 99_840}, {"domain": "medical"}),  # undisclosed
                "tokenizer_bytes": 2 * 10**9,  # undisclosed
                "row_lengths": (8192, 32_768),
            },
            "optimizer": {"eps": 1e-8},  # undisclosed
            "train": {
                "log_every": 10,
                "checkpoint_every": 500,
                "emergency_every": 50,
                "keep_checkpoints": 3,
                "remat": "block",
                "accumulation": 8,
                "loss_chunk": 2**17,  # 2,048 tokens a chip
            },
            "mesh": {"fsdp": 64},
            "hardware": {"topology": "v5p:4x4x4"},
            "stages": (
                {
                    "name": "general",
                    "tokens": 12 * T,
                    "row_length": 8192,
                    "global_batch": BATCH_TOKENS // 8192,
                    "mixture": {"domain:general": 0.95, "domain:medical": 0.05},  # undisclosed
                    "learning_rate": {"start": 4e-4, "end": 4e-4, "warmup_steps": 2000},
                    "rope_base": 1e5,
                },
                {
                    "name": "medical",
                    "tokens": 6 * T,
                    "row_length": 8192,
                    "global_batch": BATCH_TOKENS // 8192,
                    "mixture": {"domain:general": 0.8, "domain:medical": 0.2},  # undisclosed
                    "learning_rate": {"start": 4e-4, "end": 4e-4},
                    "rope_base": 1e5,
                },
                {
                    "name": "annealing",
                    "tokens": 2 * T,
                    "row_length": 32_768,
                    "global_batch": BATCH_TOKENS // 32_768,
                    "mixture": {"domain:general": 0.7, "domain:medical": 0.3},  # undisclosed
                    "learning_rate": {"start": 4e-4, "end": 2e-5, "shape": "cosine"},
                    "rope_base": 1e6,
                },
            ),
        }
    )
