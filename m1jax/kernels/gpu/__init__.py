"""Attention for NVIDIA GPUs: cuDNN where it computes exactly this, else Pallas kernels lowered by Triton."""
