"""m1jax: Baichuan-M1 language models, from raw text to a checkpoint that PyTorch users load."""

__version__ = "0.1.0"
