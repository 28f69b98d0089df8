"""A 1.5B Baichuan-M1: the short-convolution paper's small preset with M1's layers, 200B tokens at 8K, W 2K.

Hidden 2048, 28 layers, FFN 5504 and 16 heads are the preset of KV Shifting Attention (arXiv 2411.19574); window
layers and the window of 2,048 are those of the Baichuan-M1 report's ablations at this size. The vocabulary is smaller
than the 14B's, so that the embeddings do not outweigh the layers. Meant for a TPU slice of 16 chips or more; nothing
about its time or memory is claimed here until `m1 plan` has compiled it.
"""

from ml_collections import ConfigDict

B = 10**9
BATCH_TOKENS = 2**21
VOCAB = 65_536


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "name": "m1_1b5",
            "folder": "runs/m1_1b5",
            "model": {
                "vocab_size": VOCAB,
                "hidden": 2048,
                "ffn": 5504,
                "num_layers": 28,
                "num_heads": 8,  # head_dim 256 on global layers, as in the 14B
                "num_kv_heads": 2,
                "window_num_heads": 16,
                "window_num_kv_heads": 8,
                "window": 2048,
                "norm_eps": 1e-6,
                "init_std": 0.02,
                "max_positions": 32_768,
                "param_dtype": "float32",
                "compute_dtype": "bfloat16",
                "attention": "pallas_tpu",
            },
            "data": {"domains": ("general", "medical"), "vocab_size": VOCAB, "row_lengths": (8192, 32_768)},
            "optimizer": {"eps": 1e-8},
            "train": {
                "checkpoint_every": 500,
                "emergency_every": 50,
                "keep_checkpoints": 3,
                "remat": "block",
                "accumulation": 4,
                "loss_chunk": 2**15,  # 2,048 tokens a chip
            },
            "mesh": {"fsdp": 16},
            "hardware": {"topology": "v5e:4x4"},
            "stages": (
                {
                    "name": "general",
                    "tokens": 120 * B,
                    "row_length": 8192,
                    "global_batch": BATCH_TOKENS // 8192,
                    "mixture": {"domain:general": 0.95, "domain:medical": 0.05},
                    "learning_rate": {"start": 4e-4, "end": 4e-4, "warmup_steps": 2000},
                    "rope_base": 1e5,
                },
                {
                    "name": "medical",
                    "tokens": 60 * B,
                    "row_length": 8192,
                    "global_batch": BATCH_TOKENS // 8192,
                    "mixture": {"domain:general": 0.8, "domain:medical": 0.2},
                    "learning_rate": {"start": 4e-4, "end": 4e-4},
                    "rope_base": 1e5,
                },
                {
                    "name": "annealing",
                    "tokens": 20 * B,
                    "row_length": 32_768,
                    "global_batch": BATCH_TOKENS // 32_768,
                    "mixture": {"domain:general": 0.7, "domain:medical": 0.3},
                    "learning_rate": {"start": 4e-4, "end": 2e-5, "shape": "cosine"},
                    "rope_base": 1e6,
                },
            ),
        }
    )
