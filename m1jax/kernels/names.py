"""Names of values for jax.ad_checkpoint: a policy that keeps them spares their kernel a second run."""

ATTENTION = "attention"
"""What attention returns, and what its kernels keep for their backward pass."""
